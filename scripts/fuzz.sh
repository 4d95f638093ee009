#!/usr/bin/env bash
# Fuzzes all code that reads unknown bytes. libFuzzer derives the inputs from real files. The script stops at the first
# input that makes the code fail, hang or take too much memory.
#
#     scripts/fuzz.sh SECONDS [TARGET…]
#
# It needs no root and no nightly Rust. It does not look for faults of memleak's few unsafe blocks, so it uses no
# sanitizer. It does check overflows and assertions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

duration=${1:?usage: scripts/fuzz.sh SECONDS [TARGET…]}
shift
targets=("$@")
((${#targets[@]} > 0)) || targets=(elf code handlers ld_cache maps allocators_toml events reach shadow suppressions symbols edited saved)

work=target/fuzz
tools=target/tools
PATH=$PWD/$tools/bin:$PATH

# The maximum size of an input in bytes: as much as the code under test looks at.
declare -A longest=([elf]=262144 [code]=4096 [handlers]=8192 [ld_cache]=131072 [maps]=65536 [allocators_toml]=8192 [events]=2048 [reach]=8192 [shadow]=8192 [suppressions]=8192 [symbols]=65536 [edited]=600 [saved]=16384)

# Collects seeds: real files of this machine, no longer than an input may be.
seed() { # seed TARGET: into $work/seeds/TARGET
	local target=$1 into=$work/seeds/$1 limit=${longest[$1]} file
	rm -rf "$into" && mkdir -p "$into"
	case $target in
	elf)
		local -a files
		mapfile -t files < <(find -L /lib /lib64 /usr/lib /usr/bin -maxdepth 2 -type f -size -"$((limit / 1024))"k \
			\( -name '*.so*' -o -perm -u+x \) 2>/dev/null | sort -u | awk 'NR % 40 == 1' | head -n 60)
		for file in "${files[@]}" /lib64/ld-linux-x86-64.so.2; do
			[[ $(head -c 4 "$file" 2>/dev/null | tr -d '\177') != ELF ]] || cp -L "$file" "$into/${file//\//_}"
		done
		small_elfs "$into"
		;;
	code)
		# The code of the C library, in pieces.
		objcopy -O binary --only-section=.text "$(ldd /bin/sh | awk '/libc\.so/ { print $3 }')" "$into/text"
		head -c 1000000 "$into/text" | split -a 4 -b 1000 - "$into/piece"
		rm "$into/text"
		;;
	handlers)
		# The C++ library's tables, in pieces. An address of 8 bytes comes before each.
		objcopy -O binary --only-section=.gcc_except_table --set-section-flags .gcc_except_table=alloc \
			"$(c++ -print-file-name=libstdc++.so.6)" "$into/tables"
		# shellcheck disable=SC2016 # split sets FILE for its filter
		head -c 20000 "$into/tables" | split -a 4 -b 100 --filter='{ printf %08d 0; cat; } >"$FILE"' - "$into/piece"
		rm "$into/tables"
		;;
	ld_cache) head -c "$limit" /etc/ld.so.cache >"$into/cache" ;;
	maps)
		for file in /proc/[0-9]*/maps; do
			head -c "$limit" "$file" >"$into/${file//\//_}" 2>/dev/null || rm -f "$into/${file//\//_}"
		done
		;;
	allocators_toml)
		awk '/^    \[\[allocator\]\]/ { on = 1 } /^[^ ]/ { on = 0 } on { sub(/^    /, ""); print }' \
			docs/allocators.md >"$into/toml"
		grep -o "[a-z./*]*:\(alloc\|new\)=[^ '\`]*" docs/allocators.md src/find/notation.rs |
			split -l 1 -a 3 - "$into/spec"
		;;
	events)
		# No file holds what the kernel sends. Its records have these lengths, and are mostly zeros and counts.
		for size in 240 260 400 1400; do
			head -c "$size" /dev/zero >"$into/zeros$size"
			head -c "$size" /bin/ls >"$into/file$size"
		done
		;;
	reach | shadow) cp fuzz/found/"$target"/* "$into" ;;
	suppressions)
		# The lists are long, so they are cut into pieces of whole suppressions.
		for file in src/stacks/known.supp /usr/libexec/valgrind/default.supp /usr/lib/valgrind/*.supp; do
			[[ ! -e $file ]] || csplit -s -z -n 4 -f "$into/${file//\//_}" "$file" '/^{/' '{*}'
		done
		grep -o 'leak:[^ "\\`]*' docs/suppressions.md | sort -u >"$into/leak"
		;;
	edited)
		# Patches with the bytes that are there.
		local libc=/lib/x86_64-linux-gnu/libc.so.6 at
		for at in 24 32 54 120 400 1000; do
			{ perl -e 'print pack "V", shift' "$at" && tail -c +$((at + 1)) "$libc" | head -c 8; } >"$into/at$at"
		done
		;;
	saved)
		# The lines of a report, alone and together.
		head -c "$limit" tests/readers/saved.json >"$into/whole"
		split -l 1 -a 3 tests/readers/saved.json "$into/line"
		;;
	symbols)
		files_with_lines "$into"
		nm -D --format=posix "$(c++ -print-file-name=libstdc++.so.6)" | awk '{ print $1 }' |
			split -l 20 -a 3 - "$into/names"
		printf '1000 10 first\n1008 8 second\n' >"$into/map"
		;;
	esac
	find "$into" -empty -type f -delete
}

# Makes packed and linked of a file: without its symbols, which are in a section and in a debug file that is gone.
strip_in_two_ways() { # strip_in_two_ways FILE
	objcopy --only-keep-debug "$1" debug
	xz -k debug
	objcopy -S --add-section .gnu_debugdata=debug.xz "$1" packed
	objcopy -S --add-gnu-debuglink=debug "$1" linked
	rm debug debug.xz
}

# Makes small ELF files of all the kinds that contain allocators.
small_elfs() { # small_elfs INTO
	local into=$1 scratch
	scratch=$(mktemp -d)
	cat >"$scratch/library.c" <<-'C'
		char pool[4096]; unsigned long used;
		void *malloc(unsigned long n) { used += n; return pool + used; }
		void *calloc(unsigned long n, unsigned long m) { return malloc(n * m); }
		void *realloc(void *p, unsigned long n) { return malloc(n); }
		void free(void *p) { if (p) used -= 1; }
		void *_Znwm(unsigned long n) { void *p = malloc(n); if (!p) __builtin_trap(); return p; }
		void *my_alloc(unsigned long n) { return malloc(n); }
		void my_free(void *p) { free(p); }
		void _dl_debug_state(void) {}
		void map(void) { _dl_debug_state(); used = 1; _dl_debug_state(); }
		void _start(void) { map(); for (;;) ; }
	C
	(
		cd "$scratch"
		local -a plain=(cc -O1 -fno-builtin -nostdlib "-Wl,--build-id" "-Wl,-z,noseparate-code")
		"${plain[@]}" -shared -fPIC -Wl,--hash-style=gnu -o gnu.so library.c
		"${plain[@]}" -shared -fPIC -Wl,--hash-style=sysv -Wl,-rpath,"\$ORIGIN/lib:/lib" -o sysv.so library.c
		"${plain[@]}" -static -o static library.c
		"${plain[@]}" -static-pie -fPIE -o static-pie library.c
		strip_in_two_ways static
		rm library.c
	)
	mv "$scratch"/* "$into"
	rm -r "$scratch"
}

# Makes small ELF files with debug information of all kinds.
files_with_lines() { # files_with_lines INTO
	local into=$1 scratch
	scratch=$(mktemp -d)
	cat >"$scratch/lines.cc" <<-'C'
		volatile long total;
		namespace inner {
		template <class T> struct Node { T value; Node(T n) : value(n) { total += n; } };
		static inline __attribute__((always_inline)) long twice(long n) { Node<long> node(n); return node.value * 2; }
		}
		__attribute__((noinline)) long work(long n) { return inner::twice(n) + (n > total ? inner::twice(total) : 1); }
		extern "C" void _start(void) { total = work(work(3)); for (;;) ; }
	C
	(
		cd "$scratch"
		local -a plain=(c++ -O2 -nostdlib -static "-Wl,--build-id" "-Wl,-z,noseparate-code")
		"${plain[@]}" -g -gdwarf-4 -o four lines.cc
		"${plain[@]}" -g -gdwarf-5 -o five lines.cc
		"${plain[@]}" -g -gz -o compressed lines.cc
		"${plain[@]}" -g -O0 -o slow lines.cc
		strip_in_two_ways four
		rm lines.cc
	)
	mv "$scratch"/* "$into"
	rm -r "$scratch"
}

if ! command -v cargo-fuzz >/dev/null; then
	echo "Installing cargo-fuzz into $tools"
	cargo install --locked --quiet --debug --root "$tools" cargo-fuzz
fi
# Except for the flags of sanitizers, cargo-fuzz gives the compiler only stable flags. The build has a directory of its
# own, so that other builds need not wait for it.
cargo fuzz build --dev --sanitizer none --target-dir "$work/build"
host=$(rustc -vV | sed -n 's/^host: //p')

for target in "${targets[@]}"; do
	seed "$target"
	corpus=$work/corpus/$target failures=$work/failures/$target
	mkdir -p "$corpus" "$failures"
	printf '\n=== %s, %s s ===\n' "$target" "$duration"
	log=$work/$target.log
	if ! "$work/build/$host/debug/$target" "$corpus" "fuzz/found/$target" "$work/seeds/$target" \
		-max_total_time="$duration" -max_len="${longest[$target]}" -timeout=5 -rss_limit_mb=512 \
		-artifact_prefix="$failures/" -print_final_stats=1 >"$log" 2>&1; then
		grep -E 'panicked|ERROR|SUMMARY' -A 2 "$log" | head -n 20
		echo "FAILED: the input is in $failures, the messages are in $log."
		echo "After the fix, put the minimised input into fuzz/found/$target:"
		echo "    cargo fuzz tmin --dev --sanitizer none --target-dir $work/build $target $failures/…"
		exit 1
	fi
	grep -E '^stat::(number_of_executed_units|average_exec_per_sec|new_units_added|peak_rss_mb)' "$log"
done
