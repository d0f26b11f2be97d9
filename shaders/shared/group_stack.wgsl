// Reading a stack of low-bit codes with scales by group (src/quant/groups.rs), and writing what is multiplied with it.
// Imported where `params` with `groups` of a row, `weights`, `y`, `codes` without FLOATS and `residual` with RESIDUAL are
// declared.
#import stack
#import vectors
#import half_floats
#import code_pairs

const SIX_WORDS: u32 = 13u; // of 64 columns of 6-bit codes (src/quant/six_bits.rs)

// Words of a row.
fn code_words(bits: u32) -> u32 {
    if bits == 6u { return SIX_WORDS * ((weights[0].y + 63u) / 64u); }
    return row_words(bits);
}

// Columns of a group.
fn group_columns() -> u32 {
    return weights[0].z;
}

// The scales of group `g` of eight rows of a tile, from row 8i on; `first` is the first vec4 of the matrix's scales.
fn eight_scales(first: u32, tile: u32, g: u32, i: u32) -> vec4<u32> {
    return weights[first + (tile * params.groups + g) * (TILE_LANES / 2u) + i];
}

// Four of them as floats.
fn four_scales(pair: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(float_of(pair.x & 0xffffu), float_of(pair.x >> 16u), float_of(pair.y & 0xffffu),
        float_of(pair.y >> 16u));
}

// Scales of group `g` of rows 4 · lane.. of a tile.
fn scales_at(first: u32, tile: u32, g: u32, lane: u32) -> vec4<f32> {
    let eight = eight_scales(first, tile, g, lane / 2u);
    return four_scales(select(eight.xy, eight.zw, (lane & 1u) == 1u));
}

// The first vec4 of a matrix's scales.
fn first_scale(matrix: u32) -> u32 {
    return weights[2u + 2u * matrix].y;
}

// What all of a matrix is multiplied by.
fn factor_of(matrix: u32) -> f32 {
    return bitcast<f32>(weights[2u + 2u * matrix].w);
}

// Sums of codes and activations from those of stored codes, `less` the activations' sum. Codes of 8 bits, and of 6, are made signed
// on the way.
fn exact(stored: vec4<i32>, less: f32, bits: u32) -> vec4<f32> {
    let sum = vec4<f32>(select(stored, 2 * stored, bits == 1u));
    return sum - vec4<f32>(select(less, 0.0, bits >= 6u));
}

// The codes of one column of four rows, which begin at bit `shift` of their words.
fn codes_at(w: vec4<u32>, shift: u32, bits: u32) -> vec4<f32> {
    let stored = vec4<f32>((w >> vec4<u32>(shift)) & vec4<u32>((1u << bits) - 1u));
    if bits == 1u { return 2.0 * stored - vec4<f32>(1.0); }
    return stored - vec4<f32>(select(1.0, 128.0, bits == 8u));
}

// Σ code · v of the codes of four columns, which begin at bit `shift` of their bytes.
fn four_products(w: vec4<u32>, v: vec4<f32>, shift: u32, bits: u32) -> vec4<f32> {
    return v.x * codes_at(w, shift, bits) + v.y * codes_at(w, shift + 8u, bits)
        + v.z * codes_at(w, shift + 16u, bits) + v.w * codes_at(w, shift + 24u, bits);
}

// The products of bytes 0 and 2 of four words with a pair of activations, added: two of them stay within 2^15.
fn two_products(stored: vec4<u32>, acts: u32) -> vec4<i32> {
    return high(((stored & vec4<u32>(0x00ff00ffu)) - vec4<u32>(0x00800080u)) * acts);
}

// Σ byte · activation of one word of four rows of 8-bit codes, of codes taken apart.
fn dot_pairs(stored: vec4<u32>, even: u32, odd: u32) -> vec4<i32> {
    return two_products(stored, even) + two_products(stored >> vec4<u32>(8u), odd);
}

// The same of a word of codes.
fn dot_bytes(stored: vec4<u32>, act: u32) -> vec4<i32> {
#ifdef DOT4
    let w = stored ^ vec4<u32>(0x80808080u);
    return vec4<i32>(dot4I8Packed(w.x, act), dot4I8Packed(w.y, act), dot4I8Packed(w.z, act), dot4I8Packed(w.w, act));
#else
    return dot_pairs(stored, even_codes(vec4<u32>(act)).x, odd_codes(vec4<u32>(act)).x);
#endif
}

// 16 columns of 6-bit codes of four rows, without their integers, as words of 8-bit codes.
struct Sixteen {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
}

// Four columns, whose lower bits are in the lower half of each byte, and the upper ones in bits 4 and 5. What is stored as s stands
// for s - 32, and in 8 bits for s - 128.
fn bytes_of_six(lower: vec4<u32>, upper: vec4<u32>) -> vec4<u32> {
    return ((lower & vec4<u32>(0x0f0f0f0fu)) | (upper & vec4<u32>(0x30303030u))) + vec4<u32>(0x60606060u);
}

// Group i of 16 columns of a row; `at` is the lane's place among the words of the tile.
fn sixteen_at(at: u32, i: u32) -> Sixteen {
    let first = at + (i / 4u * SIX_WORDS + 1u + 3u * (i % 4u)) * TILE_LANES;
    let lower = weights[first];
    let next = weights[first + TILE_LANES];
    let upper = weights[first + 2u * TILE_LANES];
    return Sixteen(bytes_of_six(lower, upper << vec4<u32>(4u)), bytes_of_six(lower >> vec4<u32>(4u), upper << vec4<u32>(2u)),
        bytes_of_six(next, upper), bytes_of_six(next >> vec4<u32>(4u), upper >> vec4<u32>(2u)));
}

// The integers that multiply these columns.
fn integers_at(at: u32, i: u32) -> vec4<i32> {
    let four = weights[at + i / 4u * SIX_WORDS * TILE_LANES];
    return bitcast<vec4<i32>>(four << vec4<u32>(24u - 8u * (i % 4u))) >> vec4<u32>(24u);
}

#ifdef FLOATS
#else
// Of eight words of 8-bit codes, those of one vec4 of codes; words behind the last one meet codes that are 0.
fn bytes4(at: u32, first: u32, words: u32, act: vec4<u32>) -> vec4<i32> {
    let last = words - 1u;
    return dot_bytes(weights[at + min(first, last) * TILE_LANES], act.x)
        + dot_bytes(weights[at + min(first + 1u, last) * TILE_LANES], act.y)
        + dot_bytes(weights[at + min(first + 2u, last) * TILE_LANES], act.z)
        + dot_bytes(weights[at + min(first + 3u, last) * TILE_LANES], act.w);
}

// Sums of 16 columns with one vec4 of codes.
fn dot_sixteen(w: Sixteen, act: vec4<u32>) -> vec4<i32> {
    return dot_bytes(w.a, act.x) + dot_bytes(w.b, act.y) + dot_bytes(w.c, act.z) + dot_bytes(w.d, act.w);
}
#endif

// Writes four outputs from place `at` of y on; `in_part` is the first one's number in its matrix of `rows` outputs.
fn store4(at: u32, v: vec4<f32>, in_part: u32, rows: u32) {
    for (var i = 0u; i < 4u; i++) {
        if in_part + i < rows {
#ifdef RESIDUAL
            y[at + i] = component(v, i) + residual[at + i];
#else
            y[at + i] = component(v, i);
#endif
        }
    }
}
