// Sums of masked codes in the 16-bit halves of words, for 8 rows and 4 outputs: a mask and an addition for two codes,
// where a dot product of four would consist of shifts, multiplications and additions.
#import ternary_blocks

const HALVES: u32 = 0x00ff00ffu;
const FLIP: u32 = 0x80808080u; // turns codes into codes + 128, without signs
const RUN: u32 = 16u; // words of weights until a half is full: 16 · 8 · 2 · 255 < 2^16, 16 · 4 · 2 · 2 · 255 too

var<private> sums: array<vec4<i32>, ROWS>; // over stored codes
var<private> halves: array<vec4<u32>, ROWS>;
var<private> stored_sum: vec4<u32>;

// All ones in each half whose lowest bit is set.
fn spread(x: vec4<u32>) -> vec4<u32> {
    let bits = x & vec4<u32>(0x00010001u);
    return (bits << vec4<u32>(16u)) - bits;
}

// The sums of stored codes of words of weights: what flipped signs will multiply.
fn stored_ones(w: vec4<u32>) -> vec4<u32> {
    return countOneBits(w);
}

fn stored_twos(w: vec4<u32>) -> vec4<u32> {
    return countOneBits(w & vec4<u32>(0x55555555u)) + 2u * countOneBits(w & vec4<u32>(0xaaaaaaaau));
}

// Adds the halves up, and takes away what flipped signs have added.
fn settle() {
    for (var r = 0u; r < ROWS; r++) {
        let both = (halves[r] & vec4<u32>(0xffffu)) + (halves[r] >> vec4<u32>(16u));
        sums[r] += vec4<i32>(both - 128u * stored_sum);
        halves[r] = vec4<u32>();
    }
    stored_sum = vec4<u32>();
}
