// Products of two columns at once in 32 bits: with stored codes s and t, and activations a and b,
// (s + 2^16 t)(2^16 a + b) = 2^16 (s a + t b) + s b modulo 2^32. As long as what the low part adds up to stays within 2^15,
// adding 2^15 before the shift rounds it away exactly.

// 2^16 times code 0 of each word, and code 2.
fn even_codes(act: vec4<u32>) -> vec4<u32> {
    let a = bitcast<vec4<i32>>(act);
    return bitcast<vec4<u32>>(((a << vec4<u32>(8u)) >> vec4<u32>(24u)) + ((a << vec4<u32>(24u)) >> vec4<u32>(8u)));
}

// 2^16 times code 1 of each word, and code 3.
fn odd_codes(act: vec4<u32>) -> vec4<u32> {
    let a = bitcast<vec4<i32>>(act);
    let upper = bitcast<vec4<u32>>((a << vec4<u32>(16u)) >> vec4<u32>(8u)) & vec4<u32>(0xffff0000u);
    return bitcast<vec4<u32>>(a >> vec4<u32>(24u)) + upper;
}

// What the products of pairs add up to.
fn high(sum: vec4<u32>) -> vec4<i32> {
    return bitcast<vec4<i32>>(sum + vec4<u32>(0x8000u)) >> vec4<u32>(16u);
}
