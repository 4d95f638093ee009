/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A test that frees what it allocates. */
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	char *volatile shelf = malloc(70);

	puts("tidy passes");
	free(shelf);
	return 0;
}
