// Blocks of 32 columns of four rows of low-bit codes against activation codes, for products with many rows where a dot product
// of bytes is one instruction: weights are unpacked once for all rows. Stored codes are code + 1 at 2 bits, and 0 or 1 at 1 bit.
#import stack

// Sixteen columns of four rows, four of them in each word.
struct Codes {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

fn ones(w: vec4<u32>, shift: u32) -> vec4<u32> {
    return (w >> vec4<u32>(shift)) & vec4<u32>(0x01010101u);
}

fn twos(w: vec4<u32>, shift: u32) -> vec4<u32> {
    return (w >> vec4<u32>(shift)) & vec4<u32>(0x03030303u);
}

// Half 0 or 1 of block `b`, of 1 or 2 bits; `at` is the lane's place among the words of the tile.
fn half_of(at: u32, b: u32, half: u32, words: u32, bits: u32) -> Codes {
    if bits == 1u {
        let w = weights[at + b * TILE_LANES] >> vec4<u32>(4u * half);
        return Codes(ones(w, 0u), ones(w, 1u), ones(w, 2u), ones(w, 3u));
    }
    // The last block may be one word; its other activations are 0.
    let w = weights[at + min(2u * b + half, words - 1u) * TILE_LANES];
    return Codes(twos(w, 0u), twos(w, 2u), twos(w, 4u), twos(w, 6u));
}

fn dots(w: vec4<u32>, act: u32) -> vec4<i32> {
    return vec4<i32>(dot4I8Packed(w.x, act), dot4I8Packed(w.y, act), dot4I8Packed(w.z, act), dot4I8Packed(w.w, act));
}

fn sum_of(w: Codes, act: vec4<u32>) -> vec4<i32> {
    return dots(w.a, act.x) + dots(w.b, act.y) + dots(w.c, act.z) + dots(w.d, act.w);
}
