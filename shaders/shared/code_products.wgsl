// 2-bit codes × activations of one row, for 16 columns and the outputs that lookup_tables' `word` and `found` are of. A number of
// 32 bits times another has the products of two columns in its upper half: that of the lower 16 bits of weights with the upper
// ones of activations, and the other way round. Eight such products are added before they are taken out; the upper half holds
// 4 times their sum, at most 4 · 3 · 127 · 16 < 2^15, and what the lower half holds is less than 2^15 away from 0.
// For one row these are fewer instructions than looking sums up takes; several rows share what is looked up, and are faster so.

var<private> pairs: array<vec4<u32>, 2>; // activations i and i + 8 of this lane's 16, the first one's in the upper half

// Makes the pairs of the codes in `bytes`. Those of weights whose bits are not moved down by 2 are made 4 times as large.
fn make_pairs() {
    pairs[0] = ((bytes[0] << vec4<u32>(16u)) + bytes[2]) << vec4<u32>(2u, 0u, 2u, 0u);
    pairs[1] = ((bytes[1] << vec4<u32>(16u)) + bytes[3]) << vec4<u32>(2u, 0u, 2u, 0u);
}

// The four pairs that a lane holds from 4i on.
fn pairs_of(i: u32, lane: u32) -> vec4<u32> {
    let mine = pairs[i];
    return vec4<u32>(subgroupShuffle(mine.x, lane), subgroupShuffle(mine.y, lane), subgroupShuffle(mine.z, lane),
        subgroupShuffle(mine.w, lane));
}

// The products of bits 0 to 3 and 16 to 19 of four words.
fn four_products(w: vec4<u32>, pair: vec2<u32>) -> vec4<u32> {
    return (w & vec4<u32>(0x00030003u)) * pair.x + (w & vec4<u32>(0x000c000cu)) * pair.y;
}

fn multiply(q: u32, first: vec4<u32>, second: vec4<u32>) {
    let w = word[q];
    let sum = four_products(w, first.xy) + four_products(w >> vec4<u32>(4u), first.zw)
        + four_products(w >> vec4<u32>(8u), second.xy) + four_products(w >> vec4<u32>(12u), second.zw);
    // Half of the lower half's range takes the sign of what is there away.
    found[q] += bitcast<vec4<u32>>(bitcast<vec4<i32>>(sum + vec4<u32>(0x8000u)) >> vec4<u32>(18u));
}

// Adds 16 columns, whose activations lie in `lane`.
fn multiply_twos(lane: u32) {
    let first = pairs_of(0u, lane);
    let second = pairs_of(1u, lane);
    multiply(0u, first, second);
    multiply(1u, first, second);
    multiply(2u, first, second);
    multiply(3u, first, second);
}
