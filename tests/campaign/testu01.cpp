// SPDX-License-Identifier: Apache-2.0
// What testu01.py hands to TestU01 as a generator: words out of a buffer that it fills again whenever it is empty.
#include <cstddef>
#include <vector>

extern "C" {

#include <bbattery.h>
#include <swrite.h>
#include <unif01.h>

using Refill = void (*)(unsigned int* words);

static Refill refill;
static std::vector<unsigned int> words;
static size_t at;

static unsigned int next_word() {
    if (at == words.size()) {
        refill(words.data());
        at = 0;
    }
    return words[at++];
}

// `size` words at once. Afterwards bbattery_NTests, bbattery_pVal and bbattery_TestNames hold what was found.
void battery(bool crush, size_t size, Refill fill) {
    swrite_Basic = FALSE;
    refill = fill;
    words.resize(size);
    at = size;
    char name[] = "noisefuse";
    unif01_Gen* generator = unif01_CreateExternGenBits(name, next_word);
    (crush ? bbattery_Crush : bbattery_SmallCrush)(generator);
    unif01_DeleteExternGenBits(generator);
}
}
