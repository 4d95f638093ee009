/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A test that passes, and loses 70 bytes. */
#include <stdio.h>
#include <stdlib.h>

static void fill(void)
{
	char *volatile shelf = malloc(70);

	shelf = NULL;
	(void)shelf;
}

int main(void)
{
	fill();
	puts("messy passes");
	return 0;
}
