# All commands of this tree for developers and users. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

CARGO ?= cargo
# The lock file is part of the tree. A build that would change it stops with an error.
CARGO_FLAGS ?= --locked
# The purpose for which install-deps and check-tools look for tools: build, test, lint, bench, kernels, dist, libcs,
# valgrind, long or readers.
FOR ?= test

# Only root may load BPF programs. Cargo runs every test and benchmark through this script, which uses sudo for a user
# and does nothing for root. Cargo splits this value at spaces. It takes a path with a slash as relative to its current
# directory.
host = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
as_root = env CARGO_TARGET_$(host)_RUNNER=scripts/as-root.sh

c_files = $(shell find bpf inside fixtures tests -name '*.[ch]' -o -name '*.cc' 2>/dev/null)
shell_files = $(shell find scripts fixtures tests examples -name '*.sh' 2>/dev/null) .ci/run

.PHONY: build
build: ## Build target/release/memleak (the default)
	@scripts/deps.sh check build >/dev/null || { scripts/deps.sh check build; exit 1; }
	$(CARGO) build --release $(CARGO_FLAGS)

# Installs what `make` has built, and builds nothing. So root leaves no files in target/.
PREFIX ?= /usr/local
DESTDIR ?=
BINARY ?= target/release/memleak

.PHONY: install
install: ## Install what `make` built: program, manual, completions, docs (PREFIX=/usr/local DESTDIR= BINARY=)
	@scripts/install.sh install '$(PREFIX)' '$(DESTDIR)' '$(BINARY)'

.PHONY: uninstall
uninstall: ## Remove what `make install` has installed (PREFIX=/usr/local DESTDIR=)
	@scripts/install.sh uninstall '$(PREFIX)' '$(DESTDIR)'

.PHONY: run
run: ## Install the missing tools, build, and show memleak at work
	@scripts/as-root.sh
	@scripts/deps.sh install build
	$(CARGO) build --release $(CARGO_FLAGS)
	@scripts/demo.sh target/release/memleak

# The number of tests that run at a time. Most of the time the tests wait for the kernel.
TEST_THREADS ?= 4

# Asks for root first, so that a user need not wait for a build to learn that the tests cannot run. Compiles as the
# user, because files that root made would hinder the user's next build. Runs all tests, even if some fail.
.PHONY: test
test: ## Install the missing tools, build, and run all tests (root, or sudo)
	@scripts/as-root.sh
	@scripts/deps.sh install test
	$(CARGO) test $(CARGO_FLAGS) --no-run
	TEST_THREADS=$(TEST_THREADS) $(as_root) scripts/test.sh $(TEST_ARGS)

.PHONY: test-long
test-long: ## Run the tests that take minutes; WRITE=1 writes their output to tests/long.txt (TESTS="kills deaths": only these)
	@scripts/as-root.sh
	@scripts/deps.sh install long
	$(CARGO) build --release $(CARGO_FLAGS)
	$(CARGO) test $(CARGO_FLAGS) --no-run
	@scripts/test-long.sh $(if $(WRITE),--write) $(TESTS)
	@$(if $(TESTS),,scripts/test-probes.sh $(if $(WRITE),--write))
	@$(if $(TESTS),,benches/merged.sh $(if $(WRITE),--write))

.PHONY: test-readers
test-readers: ## Test what pprof, speedscope, dh_view, inferno and Chromium make of memleak's documents (needs a network)
	@scripts/deps.sh install readers
	$(CARGO) build $(CARGO_FLAGS)
	@scripts/test-readers.sh

.PHONY: test-times
test-times: ## Run all tests and print how long each took, the longest first; WRITE=1 writes that to tests/times.txt
	@scripts/as-root.sh
	@scripts/deps.sh install test
	@TEST_THREADS=$(TEST_THREADS) scripts/test-times.sh $(if $(WRITE),>tests/times.txt)

# Compiles as the user, as `test` does, so that the script's own build compiles nothing.
.PHONY: test-kernels
test-kernels: ## Test on Debian's kernels, emulated if needed (root; KERNELS="6.1 6.12", SUITES="tree gate": only these)
	@scripts/as-root.sh
	@scripts/deps.sh install kernels
	$(CARGO) test $(CARGO_FLAGS) --profile emulated --no-run
	scripts/as-root.sh scripts/test-kernels.sh $(KERNELS)

.PHONY: test-libcs
test-libcs: ## Test on programs with C libraries of other Debians (root; LIBCS="newest", SUITES="tree gate": only these)
	@scripts/as-root.sh
	@scripts/deps.sh install libcs
	@scripts/test-libcs.sh --build
	scripts/as-root.sh scripts/test-libcs.sh $(LIBCS)

# SAMPLE=1 compares only the ten programs that `test` compares, too.
.PHONY: test-valgrind
test-valgrind: ## Compare with valgrind what is called lost (root; WRITE=1: the sums go to tests/long.txt; SAMPLE=1, PROGRAMS="tr cc1": only these)
	@scripts/as-root.sh
	@scripts/deps.sh install $(if $(SAMPLE),test,valgrind)
	$(CARGO) test $(CARGO_FLAGS) --test it --no-run
	@scripts/test-valgrind.sh $(if $(SAMPLE),--sample,$(if $(PROGRAMS),,$(if $(WRITE),--write)) $(PROGRAMS))
	@$(if $(SAMPLE)$(PROGRAMS),,scripts/test-valgrind.sh $(if $(WRITE),--write) --own)

.PHONY: dist
dist: ## Make a release in target/dist: .tar.gz, .deb and .rpm, for x86_64 and aarch64
	@scripts/deps.sh check dist >/dev/null || { scripts/deps.sh check dist; exit 1; }
	@scripts/dist.sh

.PHONY: test-dist
test-dist: dist ## Install the release's packages in clean roots, run memleak there, remove them (root)
	scripts/as-root.sh scripts/test-dist.sh

.PHONY: bench
bench: ## Compare with other tools that are installed; WRITE=1 writes the tables to docs/benchmarks.md (ONLY=lost, inside or stacks: only these)
	@scripts/deps.sh check build >/dev/null || { scripts/deps.sh check build; exit 1; }
	@scripts/as-root.sh
	$(CARGO) bench $(CARGO_FLAGS) --bench overhead --no-run
	$(as_root) $(CARGO) bench $(CARGO_FLAGS) --bench overhead -- $(if $(WRITE),--write) $(ONLY)

.PHONY: docs
docs: ## Write the manual page, the completions, the shown output and the curve again (root, or sudo)
	WRITE_DOCS=1 $(CARGO) test $(CARGO_FLAGS) --test it -- documents:: shown:: curve::

.PHONY: check-tools
check-tools: ## List the missing tools (FOR=build|test|lint|bench|kernels|dist|libcs|valgrind|long|readers)
	@scripts/deps.sh check $(FOR)

.PHONY: install-deps
install-deps: ## Install the missing tools, with apt-get or dnf (FOR=build|test|lint|bench|kernels|dist|libcs|valgrind|long|readers)
	@scripts/deps.sh install $(FOR)

.PHONY: fmt
fmt: ## Format Rust and C
	$(CARGO) fmt
	$(if $(c_files),clang-format -i $(c_files))

.PHONY: lint
lint: ## Check formats, and run clippy and shellcheck
	$(CARGO) fmt --check
	$(CARGO) clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	$(if $(c_files),clang-format --dry-run --Werror $(c_files))
	shellcheck $(shell_files)

# .ci/run does not run this target, but runs its findings: each becomes a test (tests/bounds/found.rs).
SECONDS ?= 60
.PHONY: fuzz
fuzz: ## Fuzz all code that reads unknown bytes, SECONDS=60 for each target (TARGETS="elf code …")
	@scripts/deps.sh check test >/dev/null || { scripts/deps.sh check test; exit 1; }
	@scripts/fuzz.sh $(SECONDS) $(TARGETS)

# Tests that ran with sudo leave files that only root can remove.
.PHONY: clean
clean: ## Remove all built files
	@$(CARGO) clean 2>/dev/null || scripts/as-root.sh rm -rf target

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
