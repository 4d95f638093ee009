/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loses 33 bytes. With an argument it forks first: the child loses 77 bytes, and the parent
 * nothing. scripts/compare.sh runs it under other tools.
 */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void lose(size_t bytes)
{
	char *volatile block = malloc(bytes);

	block = NULL;
	(void)block;
}

int main(int count, char **words)
{
	pid_t child;

	(void)words;
	if (count == 1) {
		lose(33);
		return 0;
	}
	child = fork();
	if (child == 0) {
		lose(77);
		return 0;
	}
	return child < 0 || waitpid(child, NULL, 0) < 0;
}
