#!/usr/bin/env bash
# What it takes to add up the reports of many nodes: time and memory of `memleak report --by node`.
#
#     benches/merged.sh [NODES [ROWS]]
#
# By default 1,000 nodes with 10,000 processes each. MEMLEAK names another program than the release build of this tree. Needs
# no rights. All nodes have the same rows: the files are links to one, so that the disk's speed does not count. Fails if it
# takes more than 30 seconds or 200 MB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nodes=${1:-1000} rows=${2:-10000}
memleak=$(realpath "${MEMLEAK:-target/release/memleak}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Rows as memleak writes them, and the summary of a session.
awk -v rows="$rows" 'BEGIN {
	for (n = 1; n <= rows; n++) {
		leaked = n % 10 ? 0 : 7050
		printf "{\"schema\":\"memleak/1\",\"type\":\"process\",\"pid\":%d,\"ppid\":1,\"uid\":%d,\"user\":\"user%d\",", n, n % 50, n % 50
		printf "\"comm\":\"step%d\",\"exe\":\"/opt/app/bin/step%d\",\"image\":0,\"end\":\"exited\",\"exit_code\":0,", n % 20, n % 20
		printf "\"signal\":null,\"from\":\"start\",\"start_time\":1761153780.%06d,\"end_time\":1761153781.%06d,", n, n
		printf "\"total_allocs_bytes\":%d,\"alloc_count\":%d,\"free_count\":%d,\"leaked_bytes\":%d,\"leaked_blocks\":%d,", \
			90000 + n, 120, leaked ? 20 : 120, leaked, leaked ? 100 : 0
		printf "\"reach\":{\"definite_bytes\":%d,\"definite_blocks\":%d,\"indirect_bytes\":0,\"indirect_blocks\":0,", leaked, leaked ? 100 : 0
		printf "\"possible_bytes\":0,\"possible_blocks\":0,\"reachable_bytes\":0,\"reachable_blocks\":0},"
		printf "\"peak_live_bytes\":%d,\"failed_allocs\":0,\"unknown_frees\":0,", 50000 + n
		printf "\"allocators\":[\"/usr/lib/x86_64-linux-gnu/libc.so.6\"],\"counted_by\":[\"uprobes\"],\"complete\":true,\"losses\":{}}\n"
	}
	printf "{\"schema\":\"memleak/1\",\"type\":\"summary\",\"outcome\":\"exited\",\"code\":0,\"signal\":null,\"core\":false,"
	printf "\"processes\":%d,\"complete\":true,\"losses\":{}}\n", rows
}' >"$work/rows.json"
mkdir "$work/many"
for ((node = 1; node <= nodes; node++)); do
	ln -s ../rows.json "$work/many/node$node.json"
done

cd "$work"
/usr/bin/time -o time.txt -f '%e %U %M' "$memleak" report --by node --fail-on-total-lost 1000GB many/*.json >table.txt
read -r elapsed user memory <time.txt
printf '%s nodes, %s rows, %s MB: %s s (%s s of one core), %s MB of memory\n' "$nodes" "$((nodes * rows))" \
	"$(($(stat -c %s rows.json) * nodes / 1000000))" "$elapsed" "$user" "$((memory / 1000))"
sums=$(awk '/^node/ { nodes++; processes += $2 } END { print nodes, processes }' table.txt)
[[ $sums == "$nodes $((nodes * rows))" ]] || { printf 'the table has other sums: %s\n' "$sums" >&2 && exit 1; }
# The machine may have other work: what memleak itself took is judged.
awk -v user="$user" -v memory="$memory" 'BEGIN { exit !(user <= 30 && memory <= 200000) }'
