// SPDX-License-Identifier: Apache-2.0
// A core's rate of vector arithmetic, x86-64: 16 instructions a turn, of which every second one is a fused multiply-add
// and the others integer sums, in chains that do not wait for each other.
//     cc -O2 -march=native -shared -fPIC roofs.c -o roofs.so
#ifdef __AVX512F__
#define V "%%zmm"
#else
#define V "%%ymm"
#endif
#define ZERO(r) "vxorps " V #r "," V #r "," V #r "\n"
#define FMA(r) "vfmadd213ps " V "15," V "14," V #r "\n"
#define SUM(r) "vpaddd " V "15," V #r "," V #r "\n"

void arithmetic(long turns) {
    __asm__ volatile(ZERO(0) ZERO(1) ZERO(2) ZERO(3) ZERO(4) ZERO(5) ZERO(6) ZERO(7) ZERO(8) ZERO(9) ZERO(10) ZERO(11)
                         ZERO(12) ZERO(13) ZERO(14) ZERO(15) "1:\n" FMA(0) SUM(8) FMA(1) SUM(9) FMA(2) SUM(10) FMA(3)
                             SUM(11) FMA(4) SUM(12) FMA(5) SUM(13) FMA(6) SUM(8) FMA(7)
                                 SUM(9) "dec %0\njnz 1b\nvzeroupper"
                     : "+r"(turns)
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                       "xmm12", "xmm13", "xmm14", "xmm15", "cc");
}
