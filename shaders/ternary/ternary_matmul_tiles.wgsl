// Codes × ternary matrices for many rows (ops/ternary_matmul.rs): a lane keeps 4 outputs of 8 rows, so that a word of
// weights is unpacked once for 8 rows. Codes go through workgroup memory.
#bind var<storage, read> codes: array<u32>; // [rows, sets, set_words]
#import halves
#import ternary_shares

const WORDS: u32 = 8u; // of codes for a word of 1-bit weights; 4 for one of 2-bit weights

var<workgroup> tile_codes: array<u32, ROWS * SPLIT_K * WORDS>;

// Adds the columns of a word of weights, whose codes begin at `first`.
fn add_word(w: vec4<u32>, bits: u32, first: u32) {
    if bits == 1u { stored_sum += stored_ones(w); } else { stored_sum += stored_twos(w); }
    for (var g = 0u; g < 8u / bits; g++) {
        let at = vec4<u32>(g * bits);
        let even = spread(w >> at);
        let odd = spread(w >> (at + vec4<u32>(8u)));
        let twos = vec4<u32>(select(0u, 0xffffffffu, bits == 2u));
        let even_twos = spread(w >> (at + vec4<u32>(1u))) & twos;
        let odd_twos = spread(w >> (at + vec4<u32>(9u))) & twos;
        for (var r = 0u; r < ROWS; r++) {
            let a = tile_codes[r * SPLIT_K * WORDS + first + g] ^ FLIP;
            let e = vec4<u32>(a & HALVES);
            let o = vec4<u32>((a >> 8u) & HALVES);
            halves[r] += (even & e) + (odd & o) + 2u * ((even_twos & e) + (odd_twos & o));
        }
    }
}

// Loads the codes of all rows for SPLIT_K words of weights from `j0` on.
fn load_codes(id: u32, block: u32, matrix: u32, j0: u32, per_word: u32) {
    let here = SPLIT_K * per_word;
    for (var i = id; i < ROWS * here; i += TILE_LANES * SPLIT_K) {
        let at = min(j0 * per_word + i % here, params.set_words - 1u);
        let which = set_of(row_at(block, i / here), matrix);
        tile_codes[i / here * SPLIT_K * WORDS + i % here] = codes[which * params.set_words + at];
    }
}

// Adds the columns of a thread's share of a tile: every SPLIT_K-th word.
fn add_share(id: u32, block: u32, tile: Tile, part: Part) {
    let share = id / TILE_LANES;
    let words = row_words(part.bits);
    let per_word = 8u / part.bits; // words of codes for a word of weights
    let weights0 = part.first + tile.tile * words * TILE_LANES + id % TILE_LANES;
    for (var j0 = 0u; j0 < words; j0 += SPLIT_K) {
        workgroupBarrier();
        load_codes(id, block, tile.part, j0, per_word);
        workgroupBarrier();
        let j = j0 + share;
        if j < words {
            add_word(weights[weights0 + j * TILE_LANES], part.bits, share * per_word);
        }
        if j0 / SPLIT_K % RUN == RUN - 1u { settle(); }
    }
    settle();
}
