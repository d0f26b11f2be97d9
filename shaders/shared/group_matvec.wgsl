// The product of few rows with low-bit matrices that have scales by group (ops/group_matmul.rs, ops/group_linear.rs). A
// workgroup is LANES lanes, each with VEC4S times 4 outputs, times SPLIT_K shares of the columns that are added up at the end.
// Imported where ROWS, SPLIT_K, what group_stack needs and, without FLOATS, `act_scale_and_sum` are declared, and `by_block`
// says whether its entries are of 32 columns, `codes_from` and `scales_from` where the codes and entries of row r of a block begin.
#import group_stack
#import column_blocks
#import vec4s_per_thread

const LANES: u32 = TILE_LANES / VEC4S;
const UNIT: u32 = 128u; // columns that have one scale of weights and are added together, at most
const BLOCKS: u32 = UNIT / 32u;

var<private> sums: array<vec4<f32>, ROWS * VEC4S>; // of a unit
var<private> totals: array<vec4<f32>, ROWS * VEC4S>;

// A unit of columns: its first block of 32 and the end of its blocks, the group that its scale is of, and whether it is that
// group's first one.
struct Unit {
    first: u32,
    end: u32,
    g: u32,
    is_first: bool,
}

fn unit_at(u: u32, unit: u32, blocks: u32) -> Unit {
    let g = u * unit / group_columns();
    return Unit(u * unit / 32u, min((u + 1u) * unit / 32u, blocks), g, u * unit == g * group_columns());
}

#ifdef FLOATS
#else
// Sums of stored codes of block `b` with 32 codes of a row, from vec4 `act` on.
fn block_sum(bits: u32, act: u32, b: u32, at: u32, words: u32) -> vec4<i32> {
    if bits == 8u {
        return bytes4(at, 8u * b, words, codes[act]) + bytes4(at, 8u * b + 4u, words, codes[act + 1u]);
    }
    let first = pairs(codes[act]);
    let second = pairs(codes[act + 1u]);
    if bits == 1u { return block1(weights[at + b * TILE_LANES], first, second); }
    // The last block may be one word; its other activations are 0.
    let next = min(2u * b + 1u, words - 1u);
    return block2(weights[at + 2u * b * TILE_LANES], weights[at + next * TILE_LANES], first, second);
}

// Adds a unit of `n` blocks. No branch stands between its loads, so that a thread waits for all of them together: blocks behind
// the last one are it again, times 0. The sum of a group of codes goes off its first block.
fn add_unit(bits: u32, n: u32, block: u32, unit: Unit, at: u32, words: u32) {
    for (var i = 0u; i < n; i++) {
        let b = min(unit.first + i, unit.end - 1u);
        let is_first = by_block() || (unit.is_first && i == 0u);
        for (var r = 0u; r < ROWS; r++) {
            let m = act_scale_and_sum[scales_from(block, r) + select(unit.g, b, by_block())];
            let factor = select(0.0, m.x, unit.first + i < unit.end);
            let act = codes_from(block, r) + 2u * b;
            for (var q = 0u; q < VEC4S; q++) {
                let sum = block_sum(bits, act, b, at + q, words);
                sums[r * VEC4S + q] += exact(sum, select(0.0, m.y, is_first), bits) * factor;
            }
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

// Adds every SPLIT_K-th unit of `n` blocks from `share` on.
fn add_share(bits: u32, n: u32, block: u32, share: u32, lane: u32, tile: Tile, at: u32) {
    let unit = 32u * n;
    let blocks = (weights[0].y + 31u) / 32u;
    let words = code_words(bits);
    let scale0 = first_scale(tile.part);
    for (var u = share; u < (weights[0].y + unit - 1u) / unit; u += SPLIT_K) {
        let columns = unit_at(u, unit, blocks);
        add_unit(bits, n, block, columns, at, words);
        settle(columns.g, scale0, tile.tile, lane);
    }
}

#ifdef FLOATS
// Vec4 i of row r of a block; 0 behind its last one.
fn x_at(block: u32, r: u32, i: u32) -> vec4<f32> {
    let last = params.vectors - 1u;
    return select(vec4<f32>(), x[row_at(block, r) * params.vectors + min(i, last)], i <= last);
}

// The product of group i of 16 columns with row r of a block.
fn sixteen_products(w: Sixteen, block: u32, r: u32, i: u32) -> vec4<f32> {
    return four_products(w.a, x_at(block, r, 4u * i), 0u, 8u) + four_products(w.b, x_at(block, r, 4u * i + 1u), 0u, 8u)
        + four_products(w.c, x_at(block, r, 4u * i + 2u), 0u, 8u) + four_products(w.d, x_at(block, r, 4u * i + 3u), 0u, 8u);
}
#else
// The product of group i of 16 columns with row r of a block.
fn sixteen_products(w: Sixteen, block: u32, r: u32, i: u32) -> vec4<f32> {
    let group = select(16u * i / group_columns(), i / 2u, by_block());
    let factor = act_scale_and_sum[scales_from(block, r) + group].x;
    return vec4<f32>(dot_sixteen(w, codes[codes_from(block, r) + i])) * factor;
}
#endif

// Adds every SPLIT_K-th 64 columns of 6-bit codes from `share` on. Columns behind the last 32 of a row are not there.
fn add_sixes(block: u32, share: u32, lane: u32, tile: Tile, at: u32) {
    let scale0 = first_scale(tile.part);
    let end = (weights[0].y + 31u) / 32u * 2u;
    for (var u = share; 4u * u < end; u += SPLIT_K) {
        for (var q = 0u; q < VEC4S; q++) {
            let scale = scales_at(scale0, tile.tile, 64u * u / group_columns(), lane * VEC4S + q);
            for (var i = 4u * u; i < min(4u * u + 4u, end); i++) {
                let w = sixteen_at(at + q, i);
                let times = scale * vec4<f32>(integers_at(at + q, i));
                for (var r = 0u; r < ROWS; r++) { totals[r * VEC4S + q] += sixteen_products(w, block, r, i) * times; }
            }
        }
    }
}

// The totals of a share.
fn add_columns(part: Part, block: u32, share: u32, lane: u32, tile: Tile) {
    let at = part.first + tile.tile * code_words(part.bits) * TILE_LANES + lane * VEC4S;
    // With constants the loop over a unit has no branches, and is unrolled.
    let n = min(group_columns(), UNIT) / 32u;
    if part.bits == 1u && n == BLOCKS {
        add_share(1u, BLOCKS, block, share, lane, tile, at);
    } else if part.bits == 2u && n == BLOCKS {
        add_share(2u, BLOCKS, block, share, lane, tile, at);
    } else if part.bits == 6u {
        add_sixes(block, share, lane, tile, at);
    } else {
        add_share(part.bits, n, block, share, lane, tile, at);
    }
}
