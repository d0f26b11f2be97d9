// Codes or floats × low-bit matrices with scales by group, for many rows (ops/group_matmul.rs): a lane keeps 4 outputs of 8
// rows, so that a word of weights is unpacked once for 8 rows. A workgroup is 32 lanes times SPLIT shares of the columns, a
// block of 32 each at a time; what they are multiplied by goes through workgroup memory, and the shares meet at the end.
// Grid: x = tiles of 128 outputs, y = blocks of 8 rows.
#import group_matmul

const ROWS: u32 = 8u;
const SPLIT: u32 = 4u;
const RUN: u32 = 8u * SPLIT; // words of codes, or vec4s of x, that all shares take at a time

#ifdef FLOATS
var<workgroup> tile_x: array<vec4<f32>, ROWS * RUN>;
#else
// One 32-bit product does two columns (shared/code_pairs.wgsl): codes 0 and 2 of a word, codes 1 and 3, and all of them.
var<workgroup> tile_codes: array<vec3<u32>, ROWS * RUN>;
#endif
var<workgroup> shares: array<vec4<f32>, SPLIT * SPLIT * TILE_LANES>;

var<private> totals: array<vec4<f32>, ROWS>;

fn row_at(block: u32, r: u32) -> u32 {
    return min(block * ROWS + r, counted(params.counted_by, params.rows) - 1u);
}

#ifdef FLOATS
var<private> sums: array<vec4<f32>, ROWS>;

// Loads what all rows have for blocks of 32 columns from `first` on.
fn load(id: u32, block: u32, first: u32) {
    for (var i = id; i < ROWS * RUN; i += TILE_LANES * SPLIT) {
        let at = min(8u * first + i % RUN, params.vectors - 1u);
        tile_x[i] = x[row_at(block, i / RUN) * params.vectors + at];
    }
}

// Adds the columns of a word; `at` is their first vec4 of a row of the run, of which `left` exist.
fn add_word(w: vec4<u32>, bits: u32, at: u32, left: u32) {
    for (var i = 0u; i < min(8u / bits, left); i++) {
        let a = codes_at(w, i * bits, bits);
        let b = codes_at(w, i * bits + 8u, bits);
        let c = codes_at(w, i * bits + 16u, bits);
        let d = codes_at(w, i * bits + 24u, bits);
        for (var r = 0u; r < ROWS; r++) {
            let v = tile_x[r * RUN + at + i];
            sums[r] += v.x * a + v.y * b + v.z * c + v.w * d;
        }
    }
}

fn settle(block: u32, a: u32, is_first: bool, scale: vec4<f32>, bits: u32) {
    for (var r = 0u; r < ROWS; r++) {
        totals[r] += sums[r] * scale;
        sums[r] = vec4<f32>();
    }
}
#else
var<private> sums: array<vec4<u32>, ROWS>;

// The pairs of a word of activations, and the word.
fn form_of(act: u32) -> vec3<u32> {
    let word = vec4<u32>(act);
    return vec3<u32>(even_codes(word).x, odd_codes(word).x, act);
}

fn add_word(w: vec4<u32>, bits: u32, at: u32, left: u32) {
    if bits == 8u {
        for (var r = 0u; r < ROWS; r++) { sums[r] += bitcast<vec4<u32>>(dot_bytes(w, tile_codes[r * RUN + at].z)); }
        return;
    }
    let mask = vec4<u32>(0x00010001u * ((1u << bits) - 1u));
    for (var i = 0u; i < 8u / bits; i++) {
        let even = (w >> vec4<u32>(i * bits)) & mask;
        let odd = (w >> vec4<u32>(i * bits + 8u)) & mask;
        for (var r = 0u; r < ROWS; r++) {
            let act = tile_codes[r * RUN + at + i];
            sums[r] += even * act.x + odd * act.y;
        }
    }
}

// What 32 columns add up to: within 2^15, as `high` asks.
fn sum_of(r: u32, bits: u32) -> vec4<i32> {
    return select(high(sums[r]), bitcast<vec4<i32>>(sums[r]), bits >= 6u);
}

fn load(id: u32, block: u32, first: u32) {
    for (var i = id; i < ROWS * RUN; i += TILE_LANES * SPLIT) {
        // Blocks behind the last one are not read.
        let at = min(8u * first + i % RUN, 4u * params.vectors - 1u);
        let four = codes[row_at(block, i / RUN) * params.vectors + at / 4u];
        let two = select(four.xy, four.zw, (at & 2u) != 0u);
        tile_codes[i] = form_of(select(two.x, two.y, (at & 1u) != 0u));
    }
}

// Adds the sums of 32 columns, in group `a` of codes, whose sum goes off its first part.
fn settle(block: u32, a: u32, is_first: bool, scale: vec4<f32>, bits: u32) {
    for (var r = 0u; r < ROWS; r++) {
        let m = act_scale_and_sum[row_at(block, r) * params.act_groups + a];
        totals[r] += exact(sum_of(r, bits), select(0.0, m.y, is_first), bits) * (scale * m.x);
        sums[r] = vec4<u32>();
    }
}
#endif

// Adds half of block `b` of 6-bit codes to the totals; its integer is a part of its scale.
fn add_sixteen(block: u32, b: u32, first: u32, half: u32, at: u32, scale: vec4<f32>) {
    let w = sixteen_at(at, 2u * b + half);
    let column = 32u * b + 16u * half;
    let to = (column - 32u * first) / 4u;
    let left = (max(column, weights[0].y) - column) / 4u;
    add_word(w.a, 8u, to, left);
    add_word(w.b, 8u, to + 1u, max(left, 1u) - 1u);
    add_word(w.c, 8u, to + 2u, max(left, 2u) - 2u);
    add_word(w.d, 8u, to + 3u, max(left, 3u) - 3u);
    settle(block, group_of_codes(b), true, scale * vec4<f32>(integers_at(at, 2u * b + half)), 6u);
}

// The group of codes of block `b`.
fn group_of_codes(b: u32) -> u32 {
    return select(32u * b / group_columns(), b, params.act_group == 32u);
}

// Adds block `b` of 32 columns to the totals. `bits` is a constant where this is called: drivers that compute on the CPU run
// all branches that are left, but no loop of a branch that is not taken.
fn add_block(bits: u32, block: u32, b: u32, first: u32, at: u32, words: u32, scale: vec4<f32>) {
    if bits == 6u {
        add_sixteen(block, b, first, 0u, at, scale);
        add_sixteen(block, b, first, 1u, at, scale);
        return;
    }
    for (var j = b * bits; j < min((b + 1u) * bits, words); j++) {
        let column = j * (32u / bits);
        add_word(weights[at + j * TILE_LANES], bits, (column - 32u * first) / 4u, (weights[0].y - column) / 4u);
    }
    let columns = group_columns();
    let begins = params.act_group == 32u || 32u * b % columns == 0u;
    settle(block, group_of_codes(b), begins, scale, bits);
}

@compute @workgroup_size(TILE_LANES, SPLIT)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let block = group.y;
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    let scale0 = first_scale(tile.part);
    let words = code_words(part.bits);
    let at = part.first + tile.tile * words * TILE_LANES + local.x;
    let columns = group_columns();
    let blocks = (weights[0].y + 31u) / 32u;
    for (var first = 0u; first < blocks; first += SPLIT) {
        workgroupBarrier();
        load(id, block, first);
        workgroupBarrier();
        let b = first + local.y;
        if b < blocks {
            let scale = scales_at(scale0, tile.tile, 32u * b / columns, local.x);
            if part.bits == 1u {
                add_block(1u, block, b, first, at, words, scale);
            } else if part.bits == 2u {
                add_block(2u, block, b, first, at, words, scale);
            } else if part.bits == 6u {
                add_block(6u, block, b, first, at, words, scale);
            } else {
                add_block(8u, block, b, first, at, words, scale);
            }
        }
    }
    let in_part = (tile.tile * TILE_LANES + local.x) * 4u;
    for (var r0 = 0u; r0 < ROWS; r0 += SPLIT) {
        workgroupBarrier();
        for (var r = 0u; r < SPLIT; r++) { shares[(local.y * SPLIT + r) * TILE_LANES + local.x] = totals[r0 + r]; }
        workgroupBarrier();
        var total = vec4<f32>();
        for (var s = 0u; s < SPLIT; s++) { total += shares[(s * SPLIT + local.y) * TILE_LANES + local.x]; }
        let row = block * ROWS + r0 + local.y;
        if row < counted(params.counted_by, params.rows) {
            store4(place_of(row, tile.out + in_part), factor_of(tile.part) * total, in_part, part.rows);
        }
    }
}
