#!/usr/bin/env bash
# Makes the input of the programs in programs.txt, in the current directory. The same input each time: the same names,
# contents and dates, so that the programs allocate the same. Tools that only the whole list needs may be missing.
set -euo pipefail

export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org

# Text: numbered lines with words in an order that looks random.
awk 'BEGIN {
	split("alpha beta gamma delta epsilon zeta eta theta iota kappa", word)
	for (i = 1; i <= 2000; i++) {
		n = (n * 7919 + 104729) % 100003
		printf "%d %s %s %d\n", i, word[n % 10 + 1], word[int(n / 10) % 10 + 1], n
	}
}' >text
awk 'BEGIN { print "id,name,value"; for (i = 1; i <= 200; i++) printf "%d,\"name %d\",%.3f\n", i, i * i, i / 7 }' >table.csv
sort -k 2 text >sorted
sed 's/beta/BETA/; 100d; 200a\a new line' text >changed
diff -u text changed >change.patch || true
head -c 100000 /dev/zero | tr '\0' 'x' >long-line
echo >>long-line

awk 'BEGIN {
	printf "{\"list\": ["
	for (i = 0; i < 300; i++) printf "%s{\"id\": %d, \"name\": \"item %d\", \"tags\": [\"a\", \"b%d\"], \"value\": %.2f}", i ? ", " : "", i, i, i, i / 3
	print "], \"end\": null}"
}' >data.json
awk 'BEGIN {
	print "<?xml version=\"1.0\"?>\n<root>"
	for (i = 0; i < 200; i++) printf "<item id=\"%d\"><name>item %d</name><value unit=\"m\">%d</value></item>\n", i, i, i * i
	print "</root>"
}' >data.xml
cat >data.yaml <<'END'
name: test
list:
  - one
  - two: 2
    three: [1, 2, 3]
text: |
  several
  lines
END

cat >hello.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct list {
	struct list *next;
	int value;
};

static struct list *push(struct list *list, int value)
{
	struct list *new = malloc(sizeof(*new));

	new->next = list;
	new->value = value;
	return new;
}

int main(int argc, char **argv)
{
	struct list *list = NULL;
	double sum = 0;

	for (int i = 0; i < argc * 100; i++)
		list = push(list, i ^ (int)strlen(argv[0]));
	for (; list; list = list->next)
		sum += list->value / 3.0;
	printf("%f\n", sum);
	return 0;
}
END
cat >hello.cc <<'END'
#include <cstdio>

template <class T> struct Box {
	T value;
	template <class F> auto map(F f) const { return Box<decltype(f(value))>{f(value)}; }
};

int main()
{
	Box<int> box{7};
	printf("%d\n", box.map([](int x) { return x * 2L; }).map([](long x) { return (int)x + 1; }).value);
}
END
gcc -O1 -S -o hello.s hello.c
gcc -c -o hello.o hello.s
gcc -o hello hello.o
gcc -E -o hello.i hello.c
g++ -E -o hello.ii hello.cc
mkdir many
for i in 1 2 3 4 5 6 7 8; do
	echo "int f$i(int x) { return x + $i; }" >"many/f$i.c"
	gcc -c -o "many/f$i.o" "many/f$i.c"
done
ar rcD libmany.a many/*.o

cat >Makefile.test <<'END'
NAMES := $(foreach i,1 2 3 4 5 6 7 8,f$(i))
OBJECTS := $(NAMES:%=many/%.o)
define rule
many/$(1).x: many/$(1).c
	@echo $(1) $$(words $$^)
endef
$(foreach name,$(NAMES),$(eval $(call rule,$(name))))
all: $(NAMES:%=many/%.x)
.PHONY: all
END
cat >script.sh <<'END'
declare -A count
while read -r number first second _; do
	count[$first]=$((${count[$first]-0} + 1))
	last=$second$number
done <text
for word in "${!count[@]}"; do
	lines+=("$word ${count[$word]}")
done
IFS=$'\n'
text="${lines[*]}"
text=${text//a/A}
[[ $text =~ ([a-z]+)\ ([0-9]+) ]] && echo "${BASH_REMATCH[1]} $last"
f() { local x=$1; ((x > 0)) && f $((x - 1)); }
f 20
printf -v padded '%20s' "$text"
case $padded in *Alph*) echo found ;; esac
END
cat >script.pl <<'END'
use strict;
use warnings;
my (%count, @lines);
open my $file, '<', 'text' or die;
while (<$file>) {
	my ($number, @words) = split;
	$count{$_}++ for @words[0, 1];
	push @lines, { number => $number, words => [@words] };
}
my @order = sort { $b->{words}[2] <=> $a->{words}[2] } @lines;
my $text = join ',', map { "$_=$count{$_}" } sort keys %count;
$text =~ s/(\w+)=(\d+)/$2 x $1/ge;
my $cycle = {}; $cycle->{own} = $cycle;
print substr($text, 0, 40), scalar @order, "\n";
END
cat >script.awk <<'EOF'
{ count[$2, $3]++; sum += $4; line[NR] = $0 }
END {
	for (i = NR; i > NR - 10; i--) { gsub(/a/, "aa", line[i]); print line[i] }
	n = split(line[NR], part, /[ t]/)
	printf "%d %d %s\n", n, sum, toupper(substr(line[1], 3))
}
EOF
cat >script.sql <<'END'
create table t (id integer primary key, name text, value real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 500)
insert into t select i, 'name ' || (i * 37 % 101), i / 7.0 from n;
create index by_name on t(name);
select name, count(*), avg(value) from t group by name order by 2 desc, 1 limit 5;
select json_group_array(name) from t where name like '%7%';
END
cat >script.tcl <<'END'
set list {}
for {set i 0} {$i < 200} {incr i} { lappend list [expr {$i * 37 % 101}]; dict set d $i [string repeat x $i] }
puts [lsort -integer -unique $list]
regsub -all {x+} [dict get $d 10] y z
puts $z
END
cat >page.man <<'END'
.TH TEST 1 2020-01-01 test
.SH NAME
test \- a page
.SH DESCRIPTION
Some \fBbold\fR words and a list.
.TP
.B \-a
first
.TP
.B \-b
second
.PP
More text that is long enough for several lines, so that words are put together, broken and filled by the formatter.
END
cat >table.tbl <<'END'
.TS
allbox;
l r.
name	value
one	1
two	22
.TE
END
cat >test.po <<'END'
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"
msgid "one"
msgstr "eins"
msgid "two"
msgstr "zwei"
END
msgfmt -o test.mo test.po 2>/dev/null || true

sqlite3 test.db <script.sql >/dev/null 2>&1 || true

# A key of 32 bytes that are all the letter k, so that every run has the same one.
{
	printf -- '-----BEGIN PRIVATE KEY-----\n'
	{ printf '\060\056\002\001\000\060\005\006\003\053\145\160\004\042\004\040'; head -c 32 /dev/zero | tr '\0' k; } | base64
	printf -- '-----END PRIVATE KEY-----\n'
} >key.pem
openssl req -new -x509 -key key.pem -subj /CN=test -set_serial 1 -days 36500 -out cert.pem 2>/dev/null || true

mkdir -p tree/{a,b,c}/{d,e}
for directory in tree/*/*; do
	for i in 1 2 3 4 5; do
		head -n $((i * 10)) text >"$directory/file$i"
	done
	ln -s file1 "$directory/link"
done
find . -exec touch -h -d '2020-01-01 00:00:00' {} +
tar cf tree.tar --sort=name --owner=0 --group=0 --numeric-owner tree
gzip -nk text
bzip2 -k text
xz -k text 2>/dev/null || true
zstd -q text 2>/dev/null || true
zip -qX tree.zip -r tree 2>/dev/null || true

git init -q -b main repository
cd repository
for i in $(seq 20); do
	head -n $((i * 20)) ../text >"file$((i % 4))"
	mkdir -p "directory$((i % 3))"
	echo "$i" >"directory$((i % 3))/number"
	git add .
	export GIT_AUTHOR_DATE="2020-01-01T00:00:$((i + 10))Z" GIT_COMMITTER_DATE="2020-01-01T00:00:$((i + 10))Z"
	git commit -q -m "Commit $i" -m "A body with several words"
	((i != 10)) || git branch side
done
git checkout -q side
echo side >side
git add side
git commit -q -m 'On the side'
git checkout -q main
git merge -q -m Merge side
git tag -a v1 -m 'A tag'
# git reads a file again if it is not older than the index.
find . -path ./.git -prune -o -type f -exec touch -d '2020-01-01 00:00:00' {} +
git update-index -q --refresh
echo changed >>file1
echo new >untracked
