// Codes × low-bit matrices with scales by group, for many rows, where a dot product of bytes is one instruction
// (ops/group_matmul.rs): a lane keeps 4 outputs of 8 rows, so that a block of 32 columns of the weights is unpacked once for 8
// rows. A workgroup is 32 lanes times SPLIT shares of the columns, a unit of 128 each at a time; codes and their factors go through
// workgroup memory, and the shares meet at the end. Grid: x = tiles of 128 outputs, y = blocks of 8 rows.
#import group_matmul
#import byte_dots

const ROWS: u32 = 8u;
const SPLIT: u32 = 4u;
const BLOCKS: u32 = 4u; // of a unit
const RUN: u32 = BLOCKS * SPLIT; // blocks that all shares take at a time

// What the rows have for 32 columns. One computed place for all of it: each is checked against the end of its array.
struct Block {
    codes: array<array<vec4<u32>, 2>, ROWS>,
    factors: array<vec2<f32>, ROWS>, // what a sum is multiplied by, and what goes off
}

var<workgroup> tile: array<Block, RUN>;
var<workgroup> shares: array<vec4<f32>, SPLIT * SPLIT * TILE_LANES>;

var<private> sums: array<vec4<f32>, ROWS>; // of columns with one scale
var<private> less: array<f32, ROWS>; // what goes off them
var<private> totals: array<vec4<f32>, ROWS>;

fn row_at(block: u32, r: u32) -> u32 {
    return min(block * ROWS + r, counted(params.counted_by, params.rows) - 1u);
}

// Loads what all rows have for the blocks of 32 columns from `first` on; those behind the last one are not read.
fn load(id: u32, block: u32, first: u32, bits: u32) {
    for (var nth = 0u; nth < 2u * ROWS * RUN / (TILE_LANES * SPLIT); nth++) {
        let i = id + nth * TILE_LANES * SPLIT;
        let r = i / (2u * RUN);
        let v = i % (2u * RUN);
        tile[v / 2u].codes[r][v % 2u] = codes[row_at(block, r) * params.vectors + min(2u * first + v, params.vectors - 1u)];
    }
    let r = id / RUN;
    let b = first + id % RUN;
    let by_block = params.act_group == 32u;
    let a = min(select(32u * b / params.act_group, b, by_block), params.act_groups - 1u);
    let m = act_scale_and_sum[row_at(block, r) * params.act_groups + a];
    // The sum of a group of codes goes off its first block.
    let whole = select(0.0, m.x * m.y, bits < 6u && (by_block || 32u * b == a * params.act_group));
    tile[id % RUN].factors[r] = vec2<f32>(select(m.x, 2.0 * m.x, bits == 1u), whole);
}

// As `half_of`, of any bits.
fn any_half_of(at: u32, b: u32, half: u32, words: u32, bits: u32) -> Codes {
    if bits != 8u { return half_of(at, b, half, words, bits); }
    let first = 8u * b + 4u * half;
    let last = words - 1u;
    let flip = vec4<u32>(0x80808080u);
    return Codes(weights[at + min(first, last) * TILE_LANES] ^ flip, weights[at + min(first + 1u, last) * TILE_LANES] ^ flip,
        weights[at + min(first + 2u, last) * TILE_LANES] ^ flip, weights[at + min(first + 3u, last) * TILE_LANES] ^ flip);
}

// Adds half of block `b` of 6-bit codes, which is number `nth` of those in workgroup memory.
fn add_sixteen(at: u32, b: u32, half: u32, nth: u32) {
    let w = sixteen_at(at, 2u * b + half);
    let flip = vec4<u32>(0x80808080u);
    let four = Codes(w.a ^ flip, w.b ^ flip, w.c ^ flip, w.d ^ flip);
    let integers = vec4<f32>(integers_at(at, 2u * b + half));
    for (var r = 0u; r < ROWS; r++) {
        sums[r] += vec4<f32>(sum_of(four, tile[nth].codes[r][half])) * (integers * tile[nth].factors[r].x);
    }
}

// Adds block `b`, which is number `nth` of those in workgroup memory.
fn add_block(at: u32, b: u32, nth: u32, words: u32, bits: u32) {
    if bits == 6u {
        add_sixteen(at, b, 0u, nth);
        add_sixteen(at, b, 1u, nth);
        return;
    }
    let left = any_half_of(at, b, 0u, words, bits);
    let right = any_half_of(at, b, 1u, words, bits);
    for (var r = 0u; r < ROWS; r++) {
        let sum = sum_of(left, tile[nth].codes[r][0]) + sum_of(right, tile[nth].codes[r][1]);
        let m = tile[nth].factors[r];
        sums[r] += vec4<f32>(sum) * m.x;
        less[r] += m.y;
    }
}

fn settle(scale: vec4<f32>) {
    for (var r = 0u; r < ROWS; r++) {
        totals[r] += (sums[r] - vec4<f32>(less[r])) * scale;
        sums[r] = vec4<f32>();
        less[r] = 0.0;
    }
}

@compute @workgroup_size(TILE_LANES, SPLIT)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let block = group.y;
    let place = find_tile(0u, group.x);
    let part = part_at(place.part);
    let scale0 = first_scale(place.part);
    let words = code_words(part.bits);
    let at = part.first + place.tile * words * TILE_LANES + local.x;
    let columns = group_columns();
    let last = min(columns / 32u, BLOCKS) - 1u; // of the blocks that have one scale; more often does no harm
    let blocks = (weights[0].y + 31u) / 32u;
    for (var first = 0u; first < blocks; first += RUN) {
        workgroupBarrier();
        load(id, block, first, part.bits);
        workgroupBarrier();
        let mine = first + local.y * BLOCKS;
        let end = min(mine + BLOCKS, blocks);
        for (var b = mine; b < end; b++) {
            add_block(at, b, b - first, words, part.bits);
            if b + 1u == end || (b & last) == last {
                settle(scales_at(scale0, place.tile, 32u * b / columns, local.x));
            }
        }
    }
    let in_part = (place.tile * TILE_LANES + local.x) * 4u;
    for (var r0 = 0u; r0 < ROWS; r0 += SPLIT) {
        workgroupBarrier();
        for (var r = 0u; r < SPLIT; r++) { shares[(local.y * SPLIT + r) * TILE_LANES + local.x] = totals[r0 + r]; }
        workgroupBarrier();
        var total = vec4<f32>();
        for (var s = 0u; s < SPLIT; s++) { total += shares[(s * SPLIT + local.y) * TILE_LANES + local.x]; }
        let row = block * ROWS + r0 + local.y;
        if row < counted(params.counted_by, params.rows) {
            store4(place_of(row, place.out + in_part), factor_of(place.part) * total, in_part, part.rows);
        }
    }
}
