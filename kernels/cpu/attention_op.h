#pragma once

#include "ort_abi.h"

namespace tailcut::ort {

// tailcut::GroupQueryAttention(qkv, past_key, past_value, seqlens_k, total_sequence_length, cos, sin)
//     -> output, present_key, present_value
// com.microsoft::GroupQueryAttention with packed input and rotation by halves, over a cache kept in place where past and
// present are bound to the same memory. past and present are float32, or float16. Attributes num_heads, kv_num_heads, scale, softcap, local_window_size.
const CustomOp* attention_op();
const CustomOp* half_attention_op();  // the same name, over a float16 cache

}  // namespace tailcut::ort
