/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keeps a table, and loses two lists: their first nodes, and with these the others. It is the
 * example of docs/lost.md. */
#include <stdlib.h>

struct node {
	struct node *next;
	char name[24];
};

static struct node *volatile table;

static struct node *make(int count)
{
	struct node *first = NULL;

	for (; count > 0; count--) {
		struct node *node = calloc(1, sizeof(*node));

		if (!node)
			break;
		node->next = first;
		first = node;
	}
	return first;
}

static void lose(void)
{
	struct node *volatile list = make(100);

	list = NULL;
	(void)list;
}

int main(void)
{
	table = calloc(1000, sizeof(*table));
	lose();
	lose();
	return 0;
}
