// Blocks of 32 columns of four rows of low-bit codes against 32 activation codes, for products with few rows. Stored codes
// are code + 1 at 2 bits, and 0 or 1 at 1 bit.

#ifdef PACKED_I16
// One 32-bit product does two columns. Over 32 of them either half stays within 3 · 127 · 32.
#import code_pairs

struct Acts {
    even: vec4<u32>, // activations 0 and 2 of each word of four
    odd: vec4<u32>, // 1 and 3
}

fn pairs(act: vec4<u32>) -> Acts {
    return Acts(even_codes(act), odd_codes(act));
}

fn group1(w: vec4<u32>, shift: u32, even: u32, odd: u32) -> vec4<u32> {
    let mask = vec4<u32>(0x00010001u);
    return ((w >> vec4<u32>(shift)) & mask) * even + ((w >> vec4<u32>(shift + 8u)) & mask) * odd;
}

fn group2(w: vec4<u32>, shift: u32, even: u32, odd: u32) -> vec4<u32> {
    let mask = vec4<u32>(0x00030003u);
    return ((w >> vec4<u32>(shift)) & mask) * even + ((w >> vec4<u32>(shift + 8u)) & mask) * odd;
}

// One word of 1-bit codes of each row.
fn block1(w: vec4<u32>, a: Acts, b: Acts) -> vec4<i32> {
    return high(group1(w, 0u, a.even.x, a.odd.x) + group1(w, 1u, a.even.y, a.odd.y)
        + group1(w, 2u, a.even.z, a.odd.z) + group1(w, 3u, a.even.w, a.odd.w)
        + group1(w, 4u, b.even.x, b.odd.x) + group1(w, 5u, b.even.y, b.odd.y)
        + group1(w, 6u, b.even.z, b.odd.z) + group1(w, 7u, b.even.w, b.odd.w));
}

// Two words of 2-bit codes of each row.
fn block2(v: vec4<u32>, w: vec4<u32>, a: Acts, b: Acts) -> vec4<i32> {
    return high(group2(v, 0u, a.even.x, a.odd.x) + group2(v, 2u, a.even.y, a.odd.y)
        + group2(v, 4u, a.even.z, a.odd.z) + group2(v, 6u, a.even.w, a.odd.w)
        + group2(w, 0u, b.even.x, b.odd.x) + group2(w, 2u, b.even.y, b.odd.y)
        + group2(w, 4u, b.even.z, b.odd.z) + group2(w, 6u, b.even.w, b.odd.w));
}
#else
alias Acts = vec4<u32>;

fn pairs(act: vec4<u32>) -> Acts {
    return act;
}

fn group1(w: vec4<u32>, shift: u32, act: u32) -> vec4<i32> {
    let t = (w >> vec4<u32>(shift)) & vec4<u32>(0x01010101u);
    return vec4<i32>(dot4I8Packed(t.x, act), dot4I8Packed(t.y, act), dot4I8Packed(t.z, act), dot4I8Packed(t.w, act));
}

fn group2(w: vec4<u32>, shift: u32, act: u32) -> vec4<i32> {
    let t = (w >> vec4<u32>(shift)) & vec4<u32>(0x03030303u);
    return vec4<i32>(dot4I8Packed(t.x, act), dot4I8Packed(t.y, act), dot4I8Packed(t.z, act), dot4I8Packed(t.w, act));
}

// One word of 1-bit codes of each row.
fn block1(w: vec4<u32>, a: Acts, b: Acts) -> vec4<i32> {
    return group1(w, 0u, a.x) + group1(w, 1u, a.y) + group1(w, 2u, a.z) + group1(w, 3u, a.w)
        + group1(w, 4u, b.x) + group1(w, 5u, b.y) + group1(w, 6u, b.z) + group1(w, 7u, b.w);
}

// Two words of 2-bit codes of each row.
fn block2(v: vec4<u32>, w: vec4<u32>, a: Acts, b: Acts) -> vec4<i32> {
    return group2(v, 0u, a.x) + group2(v, 2u, a.y) + group2(v, 4u, a.z) + group2(v, 6u, a.w)
        + group2(w, 0u, b.x) + group2(w, 2u, b.y) + group2(w, 4u, b.z) + group2(w, 6u, b.w);
}
#endif
