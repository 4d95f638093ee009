#!/usr/bin/env bash
# Runs real test suites again and again under a gate, and shows whether its verdict is always the same.
#
#     sudo tests/flaky/run.sh [SUITE…]
#
# A table in Markdown goes to standard output. TIMES says how often each suite runs (10), WRITE=1 puts the table into
# docs/gates-and-ci.md. MEMLEAK names another program than the debug build of this tree. A suite whose tools are missing is
# an error: name others.
# shellcheck disable=SC2016 # backquotes are Markdown's
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

memleak=$(realpath "${MEMLEAK:-target/debug/memleak}")
times=${TIMES:-10}
page=$PWD/docs/gates-and-ci.md
examples=$PWD/examples/ci
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
suites=("$@")
((${#suites[@]} > 0)) || suites=(test_json test_multiprocessing test_threading test_sqlite3 ctest meson cargo go)

die() {
	printf 'flaky: %s\n' "$*" >&2
	exit 1
}

# Prepares a suite in the current directory. Sets `words` to its command, `gate` to whom the gate judges, `what` to what
# it is.
prepare() { # prepare SUITE
	local python
	python=$(python3 -c 'import sys; print(sys.executable)')
	case $1 in
	test_json | test_threading | test_sqlite3)
		python3 -c "import test.$1" 2>/dev/null || die "python3 has no test.$1: install libpython3-testsuite"
		words=("$python" -m test "$1") gate="$(dirname "$(realpath "$python")")/*" what="CPython's \`$1\`"
		;;
	test_multiprocessing)
		local module=test_multiprocessing_main_handling
		python3 -c "import test.$module" 2>/dev/null || die "python3 has no test.$module: install libpython3-testsuite"
		words=("$python" -m test "$module") gate="$(dirname "$(realpath "$python")")/*" what="CPython's \`$module\`"
		;;
	ctest)
		cp -r "$examples/c" c
		cmake -S c -B build >/dev/null && cmake --build build >/dev/null
		words=(ctest --test-dir build -j 2) gate='./**' what='CTest, `examples/ci/c`'
		;;
	meson)
		cp -r "$examples/c" c
		meson setup build c >/dev/null && meson compile -C build >/dev/null
		words=(meson test -C build --no-rebuild) gate='./**' what='meson, `examples/ci/c`'
		;;
	cargo)
		# A crate that memleak's own build has fetched. Its tests run in threads.
		local crate=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/strsim-0.11.*)
		[[ -e ${crate[0]} ]] || die 'the crate strsim is missing: build memleak'
		cp -r "${crate[0]}" crate
		cargo test --quiet --offline --manifest-path crate/Cargo.toml --lib --no-run 2>/dev/null
		words=(cargo test --quiet --offline --manifest-path crate/Cargo.toml --lib) gate='./**' what='cargo test, the crate strsim'
		;;
	go)
		cp -r "$examples/go" go
		(cd go && CGO_ENABLED=1 go test -c -o ../shelf.test .)
		words=(./shelf.test -test.count=1) gate='./**' what='go test with cgo, `examples/ci/go`'
		;;
	*) die "there is no suite $1" ;;
	esac
}

rows=()
for suite in "${suites[@]}"; do
	mkdir "$work/$suite" && cd "$work/$suite"
	prepare "$suite"
	for ((time = 1; time <= times; time++)); do
		code=0
		"$memleak" run -q --fail-on-lost 0 --gate-exe "$gate" -o "json=report$time.json" -- "${words[@]}" \
			>"out$time.txt" 2>"err$time.txt" || code=$?
		# A report may have gigabytes of call stacks.
		grep -v '"type":"stack",' "report$time.json" >rows.json && mv rows.json "report$time.json"
		printf '%s %s: exit code %s, %s\n' "$suite" "$time" "$code" "$(grep -o 'gate [a-z]*: .*' "err$time.txt" || true)" >&2
	done
	# The verdicts with their counts, how many processes were judged, what the tree lost at least and at most, and what is not
	# known of some process of the tree, judged or not.
	row=$(python3 - "$what" "$times" <<-'PYTHON'
		import collections, json, sys
		what, times = sys.argv[1], int(sys.argv[2])
		verdicts, judged, over, lost, why = collections.Counter(), set(), set(), set(), set()
		for time in range(1, times + 1):
		    with open(f"report{time}.json") as report:
		        lines = [json.loads(line) for line in report]
		    summary = lines[-1]
		    gate = summary["gate"]
		    verdicts[gate["verdict"]] += 1
		    judged.add(gate["judged"])
		    lost.add(summary["lost_bytes"] or 0)
		    why |= {line["reach_unknown"] for line in lines if line.get("reach_unknown") and line["end"] not in ("exec", "running")}
		    why |= {line["uncovered"] for line in lines if line.get("uncovered")}
		    why |= {loss for line in lines for loss in line.get("losses", {})}
		span = lambda numbers: f"{min(numbers):,}" + ("" if len(numbers) == 1 else f" to {max(numbers):,}")
		told = ", ".join(f"{verdict} {count}×" for verdict, count in verdicts.most_common())
		print(f"| {what} | {told} | {span(judged)} | {span(lost)} | {', '.join(sorted(why))} |")
	PYTHON
	)
	rows+=("$row")
	cd - >/dev/null
done

table=$(
	printf '| suite | verdicts | judged | bytes lost in the tree | not known of some process |\n|---|---|---|---|---|\n'
	printf '%s\n' "${rows[@]}"
	printf '\n%s times each, %s, Linux %s, %s CPUs, by `tests/flaky/run.sh`.\n' "$times" "$(date +%F)" "$(uname -r)" "$(nproc)"
)
printf '%s\n' "$table"
if [[ -n ${WRITE-} ]]; then
	TABLE=$table perl -0pi -e 's/(<!-- flaky:begin -->\n).*?(<!-- flaky:end -->)/$1$ENV{TABLE}\n$2/s' "$page"
fi
