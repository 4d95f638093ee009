#!/usr/bin/env bash
# Tests that the programs that people read memleak's documents with find in them what memleak has saved: go tool pprof,
# speedscope, valgrind's dh_view.html, inferno, and Chromium for the page.
#
#     scripts/test-readers.sh
#
# Needs no rights. `make test-readers` installs what is missing and builds memleak. MEMLEAK names another program than
# the one of this tree. speedscope (npm) and inferno (cargo) are fetched once into target/tmp/readers. SHOTS names a directory for
# pictures of the page.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

memleak=${MEMLEAK:-target/debug/memleak}
speedscope=1.25.0
inferno=0.12.3
readers=$PWD/target/tmp/readers
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

die() {
	printf 'test-readers: %s\n' "$*" >&2
	exit 1
}

expect() { # expect WHAT TEXT…: each text must be in standard input
	local what=$1 found text
	shift
	found=$(cat)
	for text in "$@"; do
		if [[ $found == *"$text"* ]]; then
			printf 'ok %s: %s\n' "$what" "$text"
		else
			printf 'FAILED %s: %s is missing in:\n%s\n' "$what" "$text" "$found"
			failed=1
		fi
	done
}

dom() { # dom URL [OPTIONS]…: prints what a page becomes
	local url=$1
	shift
	timeout 120 chromium --headless=new --no-sandbox --user-data-dir="$work/profile" --allow-file-access-from-files \
		--virtual-time-budget=20000 "$@" "$url" 2>"$work/chromium.txt" || { cat "$work/chromium.txt" >&2 && die "chromium: $url"; }
}

# ---- what is read --------------------------------------------------------------------------------------------------

"$memleak" report -q -o "$work/leaks.pb.gz" -o "collapsed=$work/leaks.collapsedstack.txt" -o "dhat=$work/leaks.dhat" \
	-o "$work/leaks.html" tests/readers/saved.json

# ---- pprof ---------------------------------------------------------------------------------------------------------

export PPROF_TMPDIR=$work
go tool pprof -top -nodefraction=0 -unit=B "$work/leaks.pb.gz" 2>&1 |
	expect 'pprof -top' 'File: parser' 'Type: inuse_space' '84056B total' '76800B 91.37%' 'node_size(int) (inline)' \
		'[libjit;odd.so+0x4660]' '[callers unknown]'
go tool pprof -raw "$work/leaks.pb.gz" 2>&1 |
	expect 'pprof -raw' 'alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes[dflt]' \
		'110      12000        100       7050:' 'process:[parser]' 'make_node /home/a/parser/src/list.c:31'
go tool pprof -top -unit=B -sample_index=alloc_space -tagroot process "$work/leaks.pb.gz" 2>&1 |
	expect 'pprof -tagroot' 'Type: alloc_space' '90300B total' '90000B 99.67%  parser'
go tool pprof -top -diff_base "$work/leaks.pb.gz" "$work/leaks.pb.gz" 2>&1 | expect 'pprof -diff_base' '0, 0% of'

# ---- speedscope ----------------------------------------------------------------------------------------------------

mkdir -p "$readers"
if [[ ! -e $readers/speedscope-$speedscope/package.json ]]; then
	(cd "$work" && npm pack --silent "speedscope@$speedscope" >/dev/null && tar -xzf speedscope-*.tgz)
	mv "$work/package" "$readers/speedscope-$speedscope"
fi
for name in leaks.pb.gz leaks.collapsedstack.txt; do
	# What its command line does.
	printf 'speedscope.loadFileFromBase64("%s", "%s")\n' "$name" "$(base64 -w 0 "$work/$name")" >"$work/load.js"
	page=file://$readers/speedscope-$speedscope/dist/release/index.html
	dom "$page#localProfilePath=$work/load.js&view=sandwich" --use-gl=angle --use-angle=swiftshader \
		--enable-unsafe-swiftshader --dump-dom | sed 's/<[^>]*>/ /g' |
		expect "speedscope, $name" "$name - speedscope" 'make_node' 'std::locale::init' '(91%)'
done

# ---- dh_view -------------------------------------------------------------------------------------------------------

view=/usr/libexec/valgrind
[[ -e $view/dh_view.js ]] || die "$view/dh_view.js is missing: install valgrind"
cat >"$work/view.html" <<END
<!DOCTYPE html><meta charset="utf-8"><script src="$view/dh_view.js"></script><body><script>
onLoad(); gFilename = "leaks.dhat"; gData = $(sed 's/</\\u003c/g' "$work/leaks.dhat");
tryFunc(() => { buildTree(); displayTree(0, 0, 0); });
</script>
END
dom "file://$work/view.html" --dump-dom | sed 's/<[^>]*>//g' |
	expect dh_view 'Total:     90,300 bytes (100%' 'At t-end:  84,056 bytes' 'std::locale::init (in /lib/libstdc++.so.6)' \
		'node_size(int) (list.c:30)' 'make_node (list.c:31)' 'strdup'

# ---- inferno -------------------------------------------------------------------------------------------------------

if [[ ! -x $readers/inferno-$inferno/bin/inferno-flamegraph ]]; then
	cargo install --quiet --locked --no-default-features --features cli --root "$readers/inferno-$inferno" \
		"inferno@$inferno"
fi
"$readers/inferno-$inferno/bin/inferno-flamegraph" --countname=bytes "$work/leaks.collapsedstack.txt" |
	expect inferno 'make_node (7,050 bytes, 8.39%)' 'std::locale::init (76,800 bytes, 91.37%)'

# ---- the page ------------------------------------------------------------------------------------------------------

use() { # use PAGE SCRIPT NAME AT_LEAST: runs a script in a page, on a desk and on a telephone
	local page=$1 script=$2 name=$3 least=$4 size found verdict what
	for size in 1280,800 390,844; do
		{
			sed '/^<\/body>$/,$d' "$page"
			printf '<script>\n%s\n</script>\n</body>\n</html>\n' "$(cat tests/readers/reader.js "$script")"
		} >"$work/used.html"
		found=$(dom "file://$work/used.html" --window-size="$size" --dump-dom | sed -n '/id="results"/,/<\/pre>/p' | grep -E '^(ok|FAILED) ') ||
			die "the $name has no results at $size"
		while read -r verdict what; do
			printf '%s %s %s: %s\n' "$verdict" "$name" "$size" "$what"
		done <<<"$found"
		[[ $found != *FAILED* && $(grep -c '^ok ' <<<"$found") -ge $least ]] || failed=1
	done
}

use "$work/leaks.html" tests/readers/page.js page 20
for size in 1280,800 390,844; do
	for scheme in 0 1; do
		[[ -n ${SHOTS-} ]] || continue
		dom "file://$work/leaks.html" --window-size="$size" --hide-scrollbars "--blink-settings=preferredColorScheme=$scheme" \
			--screenshot="$SHOTS/page-${size%,*}-$scheme.png" >/dev/null
	done
done

# 60,000 stacks of 20 frames, which share their outer frames as those of a program do. That is more than a page has room for.
awk 'BEGIN {
	amounts = "\"alloc_bytes\":%d,\"alloc_count\":20,\"leaked_bytes\":%d,\"leaked_blocks\":10,"
	stacks = 60000
	for (s = 1; s <= stacks; s++) all += s % 9973 + 1
	printf "{\"schema\":\"memleak/1\",\"type\":\"process\",\"pid\":7,\"ppid\":1,\"uid\":0,\"user\":\"root\",\"comm\":\"app\","
	printf "\"exe\":\"/opt/app/bin/app\",\"image\":0,\"end\":\"exited\",\"exit_code\":0,\"signal\":null,\"from\":\"start\","
	printf "\"start_time\":1761153780.0,\"end_time\":1761153781.0,\"total_allocs_bytes\":%d,\"alloc_count\":%d,", 3 * all, 20 * stacks
	printf "\"free_count\":%d,\"leaked_bytes\":%d,\"leaked_blocks\":%d,\"reach\":null,", 10 * stacks, all, 10 * stacks
	printf "\"reach_unknown\":\"off\",\"peak_live_bytes\":%d,\"failed_allocs\":0,\"unknown_frees\":0,\"allocators\":[],", all
	printf "\"complete\":true,\"losses\":{},\"stack_unknown\":{\"alloc_bytes\":0,\"alloc_count\":0,\"leaked_bytes\":0,"
	printf "\"leaked_blocks\":0,\"walks\":{}}}\n"
	for (s = 1; s <= stacks; s++) {
		leaked = s % 9973 + 1
		printf "{\"schema\":\"memleak/1\",\"type\":\"stack\",\"pid\":7,\"image\":0,\"stack\":\"%016x\",", s
		printf amounts "\"walk\":\"complete\",\"frames\":[", 3 * leaked, leaked
		x = s
		for (depth = 0; depth < 19; depth++) {
			number = (x * 31 + depth * 977) % 40000
			printf "{\"function\":\"shop::Shelf<%d>::fill_%d(unsigned long)\",\"module\":\"/opt/app/bin/app\",", number % 97, number
			printf "\"build_id\":\"ab\",\"offset\":%d,\"file\":\"src/shelf%d.cpp\",\"line\":%d,\"inlined\":false},", number, number % 900, number % 5000
			x = int(x / 3)
		}
		printf "{\"function\":\"main\",\"module\":\"/opt/app/bin/app\",\"build_id\":\"ab\",\"offset\":1,\"file\":\"main.c\","
		printf "\"line\":3,\"inlined\":false}]}\n"
	}
	printf "{\"schema\":\"memleak/1\",\"type\":\"summary\",\"outcome\":\"exited\",\"code\":0,\"signal\":null,\"losses\":{}}\n"
}' >"$work/many.json"
"$memleak" report -q -o "$work/many.html" "$work/many.json" 2>&1 |
	expect 'many call stacks' 'have no room for all call stacks'
use "$work/many.html" tests/readers/large.js 'large page' 7
# How long a reader waits, with the start of Chromium. The limit is for a machine with other work.
SECONDS=0
timeout 60 chromium --headless=new --no-sandbox --user-data-dir="$work/profile" --dump-dom "file://$work/many.html" 2>/dev/null |
	grep -o '<p id="left-out-stacks">[^<]*' | expect 'the large page within a minute' 'have no room here'
printf 'the large page was there after %s s\n' "$SECONDS"
exit "$failed"
