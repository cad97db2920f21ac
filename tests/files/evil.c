/* A library that proves that its code ran: it makes the file that $EVIL_RAN names.
 * Works as LD_PRELOAD, as LD_AUDIT and for dlopen. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void ran(void)
{
	const char *name = getenv("EVIL_RAN");
	int file = name ? open(name, O_CREAT | O_WRONLY, 0600) : -1;

	if (file >= 0)
		close(file);
}

/* What the dynamic loader asks an auditing library for. */
unsigned int la_version(unsigned int version)
{
	return version;
}
