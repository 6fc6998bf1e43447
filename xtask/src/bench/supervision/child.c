/* The child of every supervisor in the benchmark. It is static and does nothing before its record, so that what
 * differs between two supervisors is theirs. C, because a C compiler is there (ring needs it), and a static
 * program of a few lines needs no package of its own.
 *
 *   bench-child NAME pause           stays until it is killed
 *   bench-child NAME fail            exits with 1 at once
 *   bench-child NAME exec PROGRAM …  becomes PROGRAM
 *   bench-child NAME orphans COUNT   leaves COUNT orphans that end together, records a second time, stays
 *
 * A record is one line on standard output: NAME and the nanoseconds of CLOCK_MONOTONIC. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int record(const char *name) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char line[128];
    int length = snprintf(line, sizeof line, "%.64s %lld\n", name, now.tv_sec * 1000000000LL + now.tv_nsec);
    return write(STDOUT_FILENO, line, length) == length;
}

/* Every orphan waits for the end of one pipe, which all writers hold until this returns. */
static void leave_orphans(int count) {
    int gate[2];
    if (pipe(gate) != 0) exit(3);
    for (int i = 0; i < count; i++) {
        pid_t parent = fork();
        if (parent < 0) exit(3);
        if (parent > 0) {
            waitpid(parent, NULL, 0);
            continue;
        }
        if (fork() != 0) _exit(0);
        char byte;
        close(gate[1]);
        _exit(read(gate[0], &byte, 1) != 0);
    }
    close(gate[1]);
}

int main(int argc, char **argv) {
    if (argc < 3 || !record(argv[1])) return 2;
    if (strcmp(argv[2], "fail") == 0) return 1;
    if (strcmp(argv[2], "exec") == 0 && argc > 3) {
        execvp(argv[3], argv + 3);
        return 127;
    }
    if (strcmp(argv[2], "orphans") == 0 && argc > 3) {
        leave_orphans(atoi(argv[3]));
        if (!record(argv[1])) return 2;
    }
    for (;;) pause();
}
