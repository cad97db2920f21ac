/* A program that is linked with libevil.so, for LD_LIBRARY_PATH. */
extern unsigned int la_version(unsigned int version);

int main(void)
{
	return la_version(0);
}
