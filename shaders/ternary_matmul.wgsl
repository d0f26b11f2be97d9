// Codes × ternary matrices for many rows (ops/ternary_matmul.rs): a lane keeps 4 outputs of 8 rows, so that a word of
// weights is unpacked once for 8 rows. With GROUPS the rows are a block of one expert's (ops/group_rows.rs).
// Grid: x = tiles of 128 outputs, y = blocks of 8 rows.
//
// With SHUFFLES a workgroup is 32 lanes, each of which loads one of a row's 8 words of codes. Else it is 32 lanes times
// SPLIT shares of the columns; codes go through workgroup memory, and the shares meet at the end.
// With SWAR two masked codes add up in the halves of a word; else four in a dot product.
#import ternary

const ROWS: u32 = 8u;
const SPLIT: u32 = 4u;
const WORDS: u32 = 8u; // of codes for a word of 1-bit weights; 4 for one of 2-bit weights
#ifdef SHUFFLES
const SHARES: u32 = 1u;
#else
const SHARES: u32 = SPLIT;
var<workgroup> tile_codes: array<u32, ROWS * SPLIT * WORDS>;
var<workgroup> shares: array<vec4<i32>, SPLIT * SPLIT * TILE_LANES>;
#endif

var<private> sums: array<vec4<i32>, ROWS>; // over stored codes

#ifdef SWAR
const HALVES: u32 = 0x00ff00ffu;
const FLIP: u32 = 0x80808080u; // turns codes into codes + 128, without signs
const RUN: u32 = 16u; // words of weights until a half is full: 16 · 8 · 2 · 255 < 2^16, 16 · 4 · 2 · 2 · 255 too

var<private> halves: array<vec4<u32>, ROWS>;
var<private> stored_sum: vec4<u32>;

// All ones in each half whose lowest bit is set.
fn spread(x: vec4<u32>) -> vec4<u32> {
    let bits = x & vec4<u32>(0x00010001u);
    return (bits << vec4<u32>(16u)) - bits;
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
#endif

#ifdef SHUFFLES
var<private> mine: array<vec2<u32>, ROWS>; // this lane's word of each row

fn take(r: u32, word: u32) {
#ifdef SWAR
    mine[r] = vec2<u32>(word ^ FLIP, (word ^ FLIP) >> 8u) & vec2<u32>(HALVES);
#else
    mine[r] = vec2<u32>(word, 0u);
#endif
}

// Word `g` of row r: even and odd codes, or all four.
fn pair(r: u32, first: u32, g: u32) -> vec2<u32> {
#ifdef SWAR
    return vec2<u32>(subgroupShuffle(mine[r].x, g), subgroupShuffle(mine[r].y, g));
#else
    return vec2<u32>(subgroupShuffle(mine[r].x, g), 0u);
#endif
}
#else
fn pair(r: u32, first: u32, g: u32) -> vec2<u32> {
    let word = tile_codes[r * SPLIT * WORDS + first + g];
#ifdef SWAR
    return vec2<u32>(word ^ FLIP, (word ^ FLIP) >> 8u) & vec2<u32>(HALVES);
#else
    return vec2<u32>(word, 0u);
#endif
}
#endif

// Columns of a word of 1-bit weights; their codes begin at `first`.
fn add_one_bit(w: vec4<u32>, first: u32) {
#ifdef SWAR
    stored_sum += countOneBits(w);
#endif
    for (var g = 0u; g < 8u; g++) {
#ifdef SWAR
        let even = spread(w >> vec4<u32>(g));
        let odd = spread(w >> vec4<u32>(g + 8u));
        for (var r = 0u; r < ROWS; r++) {
            let a = pair(r, first, g);
            halves[r] += (even & vec4<u32>(a.x)) + (odd & vec4<u32>(a.y));
        }
#else
        for (var r = 0u; r < ROWS; r++) { sums[r] += dot_rows(w, g, 0x01010101u, pair(r, first, g).x); }
#endif
    }
}

// The same of 2-bit weights.
fn add_two_bits(w: vec4<u32>, first: u32) {
#ifdef SWAR
    stored_sum += countOneBits(w & vec4<u32>(0x55555555u)) + 2u * countOneBits(w & vec4<u32>(0xaaaaaaaau));
#endif
    for (var g = 0u; g < 4u; g++) {
#ifdef SWAR
        let at = vec4<u32>(2u * g);
        let even = spread(w >> at);
        let odd = spread(w >> (at + vec4<u32>(8u)));
        let even_twos = spread(w >> (at + vec4<u32>(1u)));
        let odd_twos = spread(w >> (at + vec4<u32>(9u)));
        for (var r = 0u; r < ROWS; r++) {
            let a = pair(r, first, g);
            let twos = (even_twos & vec4<u32>(a.x)) + (odd_twos & vec4<u32>(a.y));
            halves[r] += (even & vec4<u32>(a.x)) + (odd & vec4<u32>(a.y)) + 2u * twos;
        }
#else
        for (var r = 0u; r < ROWS; r++) { sums[r] += dot_rows(w, 2u * g, 0x03030303u, pair(r, first, g).x); }
#endif
    }
}

struct Lane {
    @builtin(local_invocation_id) at: vec3<u32>,
    @builtin(local_invocation_index) id: u32,
#ifdef SHUFFLES
    @builtin(subgroup_invocation_id) in_subgroup: u32,
#endif
}

// Row r of the block: its set in `codes` without the matrix, and its row of y. Rows behind the last one are it again.
fn row_at(block: u32, r: u32) -> u32 {
#ifdef GROUPS
    let row = groups[block * (ROWS + 1u) + 1u + r];
    return select(row, groups[block * (ROWS + 1u) + 1u], row == NO_ROW);
#else
    return min(block * ROWS + r, led(params.lead, params.rows) - 1u);
#endif
}

fn is_row(block: u32, r: u32) -> bool {
#ifdef GROUPS
    return groups[block * (ROWS + 1u) + 1u + r] != NO_ROW;
#else
    return block * ROWS + r < led(params.lead, params.rows);
#endif
}

// The number of the codes and meta that row `row` has for matrix `matrix` of its run.
fn set_of(row: u32, matrix: u32) -> u32 {
#ifdef GROUPS
    return row * params.parts + matrix;
#else
    return row * params.sets + select(matrix, 0u, params.sets == 1u);
#endif
}

@compute @workgroup_size(TILE_LANES, SHARES)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>) {
    let block = group.y;
    var first = 0u;
#ifdef GROUPS
    let expert = groups[block * (ROWS + 1u)];
    if expert == NO_ROW { return; }
    first = expert * params.parts;
#endif
    let tile = find_tile(first, group.x);
    let part = part_at(first + tile.part);
    let words = row_words(part.bits);
    let per_word = 8u / part.bits; // words of codes for a word of weights
    let weights0 = part.first + tile.tile * words * TILE_LANES + lane.at.x;

#ifdef SHUFFLES
    var codes0: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        codes0[r] = set_of(row_at(block, r), tile.part) * params.set_words + lane.in_subgroup % per_word;
    }
    for (var j = 0u; j < words; j++) {
        for (var r = 0u; r < ROWS; r++) { take(r, codes[codes0[r] + j * per_word]); }
        let w = weights[weights0 + j * TILE_LANES];
        if part.bits == 1u { add_one_bit(w, 0u); } else { add_two_bits(w, 0u); }
#ifdef SWAR
        if j % RUN == RUN - 1u { settle(); }
#endif
    }
#else
    let here = SPLIT * per_word; // words of codes of a row in the tile
    for (var j0 = 0u; j0 < words; j0 += SPLIT) {
        workgroupBarrier();
        for (var i = lane.id; i < ROWS * here; i += TILE_LANES * SPLIT) {
            let at = min(j0 * per_word + i % here, params.set_words - 1u);
            let which = set_of(row_at(block, i / here), tile.part);
            tile_codes[i / here * SPLIT * WORDS + i % here] = codes[which * params.set_words + at];
        }
        workgroupBarrier();
        let j = j0 + lane.at.y;
        if j < words {
            let w = weights[weights0 + j * TILE_LANES];
            let at = lane.at.y * per_word;
            if part.bits == 1u { add_one_bit(w, at); } else { add_two_bits(w, at); }
        }
#ifdef SWAR
        if j0 / SPLIT % RUN == RUN - 1u { settle(); }
#endif
    }
#endif
#ifdef SWAR
    settle();
#endif

    let in_part = (tile.tile * TILE_LANES + lane.at.x) * 4u;
    let out = tile.out + in_part;
#ifdef SHUFFLES
    for (var r = 0u; r < ROWS; r++) {
        if is_row(block, r) {
            let row = row_at(block, r);
            store4(sums[r], part, set_of(row, tile.part), in_part, row * params.out_width + out);
        }
    }
#else
    for (var r0 = 0u; r0 < ROWS; r0 += SPLIT) {
        workgroupBarrier();
        for (var r = 0u; r < SPLIT; r++) {
            shares[(lane.at.y * SPLIT + r) * TILE_LANES + lane.at.x] = sums[r0 + r];
        }
        workgroupBarrier();
        let r = r0 + lane.at.y;
        var sum = vec4<i32>();
        for (var s = 0u; s < SPLIT; s++) { sum += shares[(s * SPLIT + lane.at.y) * TILE_LANES + lane.at.x]; }
        if is_row(block, r) {
            let row = row_at(block, r);
            store4(sum, part, set_of(row, tile.part), in_part, row * params.out_width + out);
        }
    }
#endif
}
