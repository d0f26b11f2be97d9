// Codes or floats × low-bit matrices with scales by group, for few rows (ops/group_matmul.rs). Grid: x = tiles of 128 outputs,
// y = blocks of ROWS rows, which share the words that are read. A workgroup is LANES lanes, each with VEC4S times 4 outputs,
// times SPLIT_K shares of the columns that are added up at the end.
#import group_matmul
#import column_blocks

#ifdef VEC4S4
const VEC4S: u32 = 4u;
#else
#ifdef VEC4S2
const VEC4S: u32 = 2u;
#else
const VEC4S: u32 = 1u;
#endif
#endif
const LANES: u32 = TILE_LANES / VEC4S;

#ifdef ROWS4
const ROWS: u32 = 4u;
#else
const ROWS: u32 = 1u;
#endif
const UNIT: u32 = 128u; // columns whose sums become floats together, at most

override SPLIT_K: u32 = 4u;

var<workgroup> shares: array<vec4<f32>, SPLIT_K * TILE_LANES>;

#ifdef FLOATS
#else
var<private> unscaled: array<vec4<i32>, ROWS * VEC4S>; // of a unit, or of a block whose codes have a factor of their own
#endif
var<private> sums: array<vec4<f32>, ROWS * VEC4S>; // of a unit
var<private> totals: array<vec4<f32>, ROWS * VEC4S>;

// Row r of a block; rows behind the last one are it again.
fn row_at(block: u32, r: u32) -> u32 {
    return min(block * ROWS + r, counted(params.counted_by, params.rows) - 1u);
}

#ifdef FLOATS
// Adds block `b` of 32 columns; `at` is the lane's place among the words of the tile.
fn add_block(block: u32, b: u32, at: u32, words: u32, bits: u32) {
    let per_word = 8u / bits; // vec4s of x for a word
    for (var i = 8u * b; i < min(8u * b + 8u, params.vectors); i++) {
        let shift = i % per_word * bits;
        for (var r = 0u; r < ROWS; r++) {
            let v = x[row_at(block, r) * params.vectors + i];
            for (var q = 0u; q < VEC4S; q++) {
                let w = weights[at + i / per_word * TILE_LANES + q];
                sums[r * VEC4S + q] += v.x * codes_at(w, shift, bits) + v.y * codes_at(w, shift + 8u, bits)
                    + v.z * codes_at(w, shift + 16u, bits) + v.w * codes_at(w, shift + 24u, bits);
            }
        }
    }
}
#else
fn add_block(block: u32, b: u32, at: u32, words: u32, bits: u32) {
    for (var r = 0u; r < ROWS; r++) {
        let act = row_at(block, r) * params.vectors + 2u * b;
        if bits == 8u {
            for (var q = 0u; q < VEC4S; q++) {
                unscaled[r * VEC4S + q] += bytes4(at + q, 8u * b, words, codes[act])
                    + bytes4(at + q, 8u * b + 4u, words, codes[act + 1u]);
            }
        } else {
            let first = pairs(codes[act]);
            let second = pairs(codes[act + 1u]);
            for (var q = 0u; q < VEC4S; q++) {
                if bits == 1u {
                    unscaled[r * VEC4S + q] += block1(weights[at + b * TILE_LANES + q], first, second);
                } else {
                    // The last block may be one word; its other activations are 0.
                    let next = min(2u * b + 1u, words - 1u);
                    unscaled[r * VEC4S + q] += block2(weights[at + 2u * b * TILE_LANES + q],
                        weights[at + next * TILE_LANES + q], first, second);
                }
            }
        }
    }
}

// Exact sums become floats with the factor of group `a` of codes, whose sum goes off its first part.
fn add_exact(block: u32, a: u32, is_first: bool, bits: u32) {
    for (var r = 0u; r < ROWS; r++) {
        let m = act_scale_and_sum[row_at(block, r) * params.act_groups + a];
        let less = select(0.0, m.y, is_first);
        for (var q = 0u; q < VEC4S; q++) {
            sums[r * VEC4S + q] += exact(unscaled[r * VEC4S + q], less, bits) * m.x;
            unscaled[r * VEC4S + q] = vec4<i32>();
        }
    }
}
#endif

// The unit's sums are scaled and added to the totals.
fn settle(g: u32, scale0: u32, tile: u32, lane: u32) {
    for (var q = 0u; q < VEC4S; q++) {
        let scale = scales_at(scale0, tile, g, lane * VEC4S + q);
        for (var r = 0u; r < ROWS; r++) {
            totals[r * VEC4S + q] += sums[r * VEC4S + q] * scale;
            sums[r * VEC4S + q] = vec4<f32>();
        }
    }
}

@compute @workgroup_size(LANES * SPLIT_K)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = id % LANES;
    let share = id / LANES;
    let block = group.y;
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    let scale0 = first_scale(tile.part);
    let words = row_words(part.bits);
    let at = part.first + tile.tile * words * TILE_LANES + lane * VEC4S;
    let columns = group_columns();
    let unit = min(columns, UNIT);
    let blocks = (weights[0].y + 31u) / 32u;
    let units = (weights[0].y + unit - 1u) / unit;
    let by_block = params.act_group == 32u;
    for (var u = share; u < units; u += SPLIT_K) {
        let g = u * unit / columns;
        for (var b = u * unit / 32u; b < min((u + 1u) * unit / 32u, blocks); b++) {
            add_block(block, b, at, words, part.bits);
#ifdef FLOATS
#else
            if by_block { add_exact(block, b, true, part.bits); }
#endif
        }
#ifdef FLOATS
#else
        if !by_block { add_exact(block, g, u * unit == g * columns, part.bits); }
#endif
        settle(g, scale0, tile.tile, lane);
    }
    let in_part = (tile.tile * TILE_LANES + lane * VEC4S) * 4u;
    for (var r = 0u; r < ROWS; r++) {
        if SPLIT_K > 1u {
            workgroupBarrier();
            for (var q = 0u; q < VEC4S; q++) { shares[(share * VEC4S + q) * LANES + lane] = totals[r * VEC4S + q]; }
            workgroupBarrier();
        }
        if share == 0u && block * ROWS + r < counted(params.counted_by, params.rows) {
            for (var q = 0u; q < VEC4S; q++) {
                var total = totals[r * VEC4S + q];
                for (var s = 1u; s < SPLIT_K; s++) { total += shares[(s * VEC4S + q) * LANES + lane]; }
                store4(block * ROWS + r, factor_of(tile.part) * total, in_part + 4u * q, part.rows, tile.out + in_part + 4u * q);
            }
        }
    }
}
