// SPDX-License-Identifier: Apache-2.0
// How many instructions a call takes, exactly, whatever else the machine does: single steps, by ptrace.
//     cc -O2 count.c -o count && ./count PROGRAM ARGUMENTS
// Of each stretch between two SIGUSR1 that the program sends itself a line is printed: instructions, and how many of
// them are arithmetic of vectors (VEX or EVEX, but for loads, stores and moves). x86-64 and Linux; one thread.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static int is_arithmetic(const unsigned char* code) {
    int map, opcode;
    if (code[0] == 0x62)  // EVEX
        map = code[1] & 7, opcode = code[4];
    else if (code[0] == 0xC4)  // VEX of three bytes
        map = code[1] & 31, opcode = code[3];
    else if (code[0] == 0xC5)  // of two
        map = 1, opcode = code[2];
    else
        return 0;
    return !(map == 1 && memchr("\x10\x11\x28\x29\x2B\x6F\x7F\xE7\x77", opcode, 9));  // the last is vzeroupper
}

int main(int argc, char** argv) {
    const pid_t child = fork();
    if (child == 0 && argc > 1) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        execvp(argv[1], argv + 1);
        _exit(127);
    }
    long instructions = 0, arithmetic = 0;
    int counting = 0, pass_on = 0, status;
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        const int signal = WSTOPSIG(status);
        pass_on = signal == SIGTRAP ? 0 : signal;
        if (signal == SIGUSR1) {
            pass_on = 0;
            if (counting) printf("%ld %ld\n", instructions, arithmetic), fflush(stdout);
            counting = !counting, instructions = arithmetic = 0;
        }
        if (counting) {
            struct user_regs_struct registers;
            ptrace(PTRACE_GETREGS, child, 0, &registers);
            const long code = ptrace(PTRACE_PEEKTEXT, child, registers.rip, 0);
            ++instructions, arithmetic += is_arithmetic((const unsigned char*)&code);
        }
        ptrace(counting ? PTRACE_SINGLESTEP : PTRACE_CONT, child, 0, pass_on);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
