// The constants of exp for kernels of every vector width: exp(z) = p(r) 2^k, k = round(z / ln 2), r = z - k ln 2.
#pragma once

namespace tailcut {

constexpr float kLog2E = 1.44269504f;
// ln 2 in two parts, the first with so few bits that its product with k is exact
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
// |r| <= ln 2 / 2: Taylor's terms up to r^7 leave 5e-9. The term of r^7 first.
constexpr float kExpTerms[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
constexpr int kExpTermCount = 8;
constexpr float kExpLowest = -87.3f;  // exp of less would be subnormal: attention takes it for 0

}  // namespace tailcut
