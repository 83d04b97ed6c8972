// Which instruction sets this processor and operating system run, and the table of each.

#include "matrix.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace tailcut {
namespace {

#if defined(__x86_64__) && !defined(TAILCUT_EMULATE)
struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned sub) {
  Leaf l;
  if (!__get_cpuid_count(leaf, sub, &l.eax, &l.ebx, &l.ecx, &l.edx)) return Leaf{};
  return l;
}

bool all(unsigned value, std::initializer_list<int> bits) {
  for (int bit : bits)
    if (!(value >> bit & 1u)) return false;
  return true;
}

// The register state the operating system saves: bits 1, 2 SSE and AVX, 5-7 AVX-512, 17, 18 AMX tiles.
uint64_t saved_state() {
  if (!(cpuid(1, 0).ecx >> 27 & 1u)) return 0;  // OSXSAVE
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool has_avx2() {
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0);
  return all(one.ecx, {12, 23, 28, 29})  // FMA, POPCNT, AVX, F16C
         && all(seven.ebx, {3, 5, 8})    // BMI1, AVX2, BMI2
         && (saved_state() & 6) == 6;
}

bool has_avx512() {
  const Leaf seven = cpuid(7, 0);
  return has_avx2() && all(seven.ebx, {16, 17, 30, 31})  // F, DQ, BW, VL
         && all(seven.ecx, {1, 6, 11})                   // VBMI, VBMI2, VNNI
         && (saved_state() & 0xe6) == 0xe6;
}

bool has_amx() {
  if (!has_avx512() || !all(cpuid(7, 0).edx, {22, 24, 25}) || (saved_state() >> 17 & 3) != 3) return false;
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#elif defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() { return true; }  // emulated
bool has_amx() { return true; }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_amx() { return false; }
#endif

}  // namespace

bool isa_available(Isa isa) {
  static const bool avx2 = has_avx2() && avx2_kernels(), avx512 = has_avx512() && avx512_kernels(),
                    amx = has_amx() && amx_kernels();
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::amx: return amx;
    default: return false;
  }
}

Isa best_isa() {
  for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2})
    if (isa_available(isa)) return isa;
  return Isa::portable;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::amx: return "amx";
    default: return "automatic";
  }
}

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
    case Isa::avx2: return avx2_kernels();
    case Isa::avx512: return avx512_kernels();
    case Isa::amx: return amx_kernels();
    default: return portable_kernels();
  }
}

}  // namespace tailcut
