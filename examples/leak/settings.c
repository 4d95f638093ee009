/* Adds up settings. It is the example of README.md and docs/stacks.md, and it leaks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct setting {
	char *name;
	int value;
};

static struct setting *parse(const char *line)
{
	struct setting *setting = malloc(sizeof(*setting));
	const char *sign = strchr(line, '=');

	if (!setting || !sign)
		return NULL;
	setting->name = strndup(line, sign - line);
	setting->value = atoi(sign + 1);
	return setting;
}

static int sum(const char *const *lines, int count)
{
	int sum = 0;

	for (int i = 0; i < count; i++) {
		struct setting *setting = parse(lines[i]);

		if (!setting)
			continue;
		sum += setting->value;
		free(setting);
	}
	return sum;
}

int main(void)
{
	const char *const lines[] = {"width=3", "# colours", "height=2", "depth", "resolution=300"};

	printf("%d\n", sum(lines, sizeof(lines) / sizeof(*lines)));
	return 0;
}
