/* A library that proves that its code ran: it makes a file. Works as LD_PRELOAD, as LD_AUDIT and
 * for dlopen. */
#include <fcntl.h>
#include <unistd.h>

__attribute__((constructor)) static void ran(void)
{
	int file = open("/run/evil-ran", O_CREAT | O_WRONLY, 0600);

	if (file >= 0)
		close(file);
}

/* What the dynamic loader asks an auditing library for. */
unsigned int la_version(unsigned int version)
{
	return version;
}
