// Reading a stack of ternary matrices (src/ternary): table, words, and the integer dot products.

const TILE_LANES: u32 = 32u; // lanes of 4 rows in a tile

struct Part {
    first: u32, // first vec4 of its words
    bits: u32, // 1 or 2
    rows: u32,
    scale: f32,
    tiles: u32,
}

// A tile of a run of matrices: which matrix of the run, which tile of it, and where its outputs begin.
struct Tile {
    part: u32,
    tile: u32,
    out: u32,
}

// Σ a_i · b_i of four signed bytes each.
fn dot4(a: u32, b: u32) -> i32 {
#ifdef DOT4
    return dot4I8Packed(a, b);
#else
    let x = vec4<i32>(bitcast<i32>(a << 24u), bitcast<i32>(a << 16u), bitcast<i32>(a << 8u), bitcast<i32>(a))
        >> vec4<u32>(24u);
    let y = vec4<i32>(bitcast<i32>(b << 24u), bitcast<i32>(b << 16u), bitcast<i32>(b << 8u), bitcast<i32>(b))
        >> vec4<u32>(24u);
    let p = x * y;
    return p.x + p.y + p.z + p.w;
#endif
}

// Columns 4k.. of four rows against one word of activations; stored codes are code + 1 (2 bits) or 0 and 1 (1 bit).
fn dot_rows(words: vec4<u32>, shift: u32, mask: u32, act: u32) -> vec4<i32> {
    let w = (words >> vec4<u32>(shift)) & vec4<u32>(mask);
    return vec4<i32>(dot4(w.x, act), dot4(w.y, act), dot4(w.z, act), dot4(w.w, act));
}
