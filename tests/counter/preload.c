// preload LIBRARY DIRECTORY COMMAND [ARGS]...
//
// Executes the command under the counter. `env` would do, but it allocates. This program calls no
// allocator, so that the counts of its own image are known to be 0.

#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char library[4096], directory[4096];
	int n = 0, to = 0;

	if (argc < 4)
		return 125;
	while (environ[n])
		n++;

	char *environment[n + 3];

	for (int i = 0; i < n; i++)
		if (strncmp(environ[i], "LD_PRELOAD=", 11) &&
		    strncmp(environ[i], "COUNTER_DIR=", 12))
			environment[to++] = environ[i];
	snprintf(library, sizeof(library), "LD_PRELOAD=%s", argv[1]);
	snprintf(directory, sizeof(directory), "COUNTER_DIR=%s", argv[2]);
	environment[to++] = library;
	environment[to++] = directory;
	environment[to] = NULL;
	execvpe(argv[3], argv + 3, environment);
	return 127;
}
