#!/usr/bin/env bash
# What it takes to add up the reports of many nodes: time and memory of `memleak report --by job`, `rank` and `node`.
#
#     benches/merged.sh [--write] [NODES [ROWS]]
#
# By default the files of 1,000 nodes with 10,000 processes each. There are as many jobs as nodes, each with 100 ranks on
# ten nodes, in three steps. --write: the figures go to tests/long.txt. MEMLEAK names another program than the release
# build of this tree. Needs no rights.
#
# There are ten different files, each with rows of a tenth of the nodes. The others are links to these, so that the disk's
# speed does not count. Fails if anything takes more than 30 seconds or 200 MB, or if a sum or the worst is wrong.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/long-record.sh
source scripts/long-record.sh

write=
if [[ ${1-} == --write ]]; then
	write=yes
	shift
fi
nodes=${1:-1000} rows=${2:-10000}
((nodes % 100 == 0 && rows % nodes == 0)) || {
	echo "merged: NODES must be a multiple of 100, and ROWS one of NODES" >&2
	exit 2
}
memleak=$(realpath "${MEMLEAK:-target/release/memleak}")
where=$(where_and_when)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/many"

# Rows as memleak writes them, and the summary of a session. One row leaks far more than the others.
for file in {0..9}; do
	awk -v rows="$rows" -v nodes="$nodes" -v file="$file" 'BEGIN {
	here = nodes / 10
	for (n = 0; n < rows; n++) {
		node = file * here + int(n / (rows / here))
		k = n % 100
		job = 1000 + int(node / 10) * 10 + k % 10
		rank = node % 10 * 10 + int(k / 10)
		leaked = n % 10 ? 0 : 7050
		if (file == 7 && n == 77) leaked = 1000000
		blocks = leaked ? 100 : 0
		printf "{\"schema\":\"memleak/1\",\"type\":\"process\",\"pid\":%d,\"ppid\":1,\"uid\":%d,\"user\":\"user%d\",", n + 100, n % 50, n % 50
		printf "\"comm\":\"step%d\",\"exe\":\"/opt/app/bin/step%d\",\"image\":0,\"end\":\"exited\",\"exit_code\":0,", n % 20, n % 20
		printf "\"signal\":null,\"from\":\"start\",\"start_time\":1761153780.%06d,\"end_time\":1761153781.%06d,", n, n
		printf "\"total_allocs_bytes\":%d,\"alloc_count\":%d,\"free_count\":%d,\"leaked_bytes\":%d,\"leaked_blocks\":%d,", \
			2000000 + n, 120, 120 - blocks, leaked, blocks
		printf "\"reach\":{\"definite_bytes\":%d,\"definite_blocks\":%d,\"indirect_bytes\":0,\"indirect_blocks\":0,", leaked, blocks
		printf "\"possible_bytes\":0,\"possible_blocks\":0,\"reachable_bytes\":0,\"reachable_blocks\":0},"
		printf "\"peak_live_bytes\":%d,\"failed_allocs\":0,\"unknown_frees\":0,", 50000 + n
		printf "\"allocators\":[\"/usr/lib/x86_64-linux-gnu/libc.so.6\"],\"counted_by\":[\"uprobes\"],\"complete\":true,\"losses\":{},"
		printf "\"host\":\"node%d\",\"job\":\"%d\",\"step\":\"%d\",\"rank\":%d}\n", node, job, n % 3, rank
	}
	printf "{\"schema\":\"memleak/1\",\"type\":\"summary\",\"outcome\":\"exited\",\"code\":0,\"signal\":null,\"core\":false,"
	printf "\"processes\":%d,\"complete\":true,\"losses\":{}}\n", rows
}' >"$work/rows$file.json"
done
for ((node = 0; node < nodes; node++)); do
	ln -s "../rows$((node % 10)).json" "$work/many/$node.json"
done
total=$((nodes * rows))
megabytes=$(($(cat "$work"/rows*.json | wc -c) * nodes / 10 / 1000000))

# What leaks most is on the node of row 77 of the seventh file.
worst_node=$((7 * nodes / 10 + 77 / (rows / (nodes / 10))))
worst_job=$((1000 + worst_node / 10 * 10 + 7)) worst_rank=$((worst_node % 10 * 10 + 7))
cd "$work"
failed=
figures=
for by in job rank node; do
	/usr/bin/time -o time.txt -f '%e %U %M' \
		"$memleak" report --by "$by" --fail-on-total-lost 1000GB --format csv -o "$by.csv" many/*.json
	read -r elapsed user memory <time.txt
	line=$(printf 'by %s: %s s (%s s of one core), %s MB of memory' "$by" "$elapsed" "$user" "$((memory / 1000))")
	echo "$line"
	figures+="    $line"$'\n'
	awk -v elapsed="$elapsed" -v memory="$memory" 'BEGIN { exit !(elapsed <= 30 && memory <= 200000) }' || {
		echo "merged: by $by: more than 30 s or 200 MB" >&2
		failed=yes
	}
	# The sums of the groups and of all, the worst of all, and the group that is the worst.
	awk -F, -v total="$total" -v worst="$worst_rank $worst_job node$worst_node" '
		NR == 1 { for (at = 1; at <= NF; at++) column[$at] = at; next }
		$1 == "all" { all = $3; found = $column["ranks_leaked_worst"] " " $column["ranks_leaked_job"] " " $column["nodes_leaked_worst"]; next }
		{ sum += $3 }
		END { exit !(sum == total && all == total && found == worst) }' "$by.csv" || {
		echo "merged: by $by: the sums or the worst are wrong" >&2
		failed=yes
	}
	case $by in
	job) first="job,$worst_job," ;;
	rank) first="rank,$worst_rank," ;;
	node) first="node,node$worst_node," ;;
	esac
	[[ $(sed -n 2p "$by.csv") == "$first"* ]] || {
		echo "merged: by $by: the first is not the worst" >&2
		failed=yes
	}
done
cd "$OLDPWD"
if [[ $write && ! $failed ]]; then
	printf 'benches/merged.sh (%s, a release build)\n    %s files, %s rows, %s MB\n%s' \
		"$where" "$nodes" "$total" "$megabytes" "$figures" | record
fi
[[ ! $failed ]]
