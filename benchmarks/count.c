// SPDX-License-Identifier: Apache-2.0
// How many instructions a call takes, exactly, whatever else the machine does: this thread alone traps after each one.
//     cc -O2 -shared -fPIC count.c -o count.so
// x86-64 and Linux. Python's functions are those of the process that loads it.
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <ucontext.h>

extern void* PyObject_CallNoArgs(void*);
extern void Py_DecRef(void*);

static volatile long instructions, arithmetic;
static volatile greg_t last;  // the address of the instruction before

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

static void step(int signal, siginfo_t* info, void* context) {
    const greg_t at = ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
    if (at == last) return;  // `rep movsb`, by which some processors copy, traps at each byte: it counts once
    last = at;
    ++instructions;
    arithmetic += is_arithmetic((const unsigned char*)at);
}

// Calls a Python function. Of its instructions, those that are arithmetic of vectors (VEX or EVEX, but for loads,
// stores and moves) are counted, too. Returns -1 if it raised an exception.
long count(void* call, long* vectors) {
    struct sigaction trap = {.sa_sigaction = step, .sa_flags = SA_SIGINFO}, before;
    sigaction(SIGTRAP, &trap, &before);
    instructions = arithmetic = last = 0;
    __asm__ volatile("sub $128, %%rsp; pushfq; orl $0x100, (%%rsp); popfq; add $128, %%rsp" ::: "cc", "memory");
    void* result = PyObject_CallNoArgs(call);
    __asm__ volatile("sub $128, %%rsp; pushfq; andl $~0x100, (%%rsp); popfq; add $128, %%rsp" ::: "cc", "memory");
    sigaction(SIGTRAP, &before, 0);
    *vectors = arithmetic;
    if (!result) return -1;
    Py_DecRef(result);
    return instructions;
}
