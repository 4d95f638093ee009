# The files that a package and `make install` have in common. To be sourced, in the source tree's directory.
#
# Cargo.toml says where each of them is installed: `assets` of [package.metadata.deb].
# shellcheck shell=bash

# Collects the files in a directory, under the names that Cargo.toml has for them. They lose their modes, because an
# executable script among the examples would make rpm require bash.
collect_parts() { # collect_parts DIRECTORY
	mkdir -p "$1/docs" "$1/slurm"
	gzip -9nc man/memleak.1 >"$1/memleak.1.gz"
	cp --no-preserve=mode completions/* LICENSE README.md CHANGELOG.md "$1/"
	cp --no-preserve=mode docs/*.md docs/*.svg "$1/docs/"
	cp --no-preserve=mode examples/slurm/* "$1/slurm/"
}
