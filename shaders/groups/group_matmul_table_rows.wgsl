// Codes × low-bit matrices with scales by group, for many rows, by looking sums up (ops/group_matmul.rs): a word of weights
// chooses the sums of 8 rows, of two at once. Grid: x = blocks of 8 rows, so that the weights stay in the cache for the
// next one, y = tiles of 128 outputs. A workgroup is LANES lanes, each with VEC4S times 4 outputs.
#import group_matmul
#import lookup_tables

const VEC4S: u32 = 2u;
const NUMBERS: u32 = 4u; // of two rows each
const ROWS: u32 = 8u;

var<private> at: u32; // the lane's first vec4 of weights
var<private> row_codes: array<u32, ROWS>; // the first vec4 of each row's codes
var<private> row_scales: array<u32, ROWS>; // its first 1/k and sum
var<private> factors: array<f32, ROWS>; // of the block's codes
var<private> less: array<f32, ROWS>; // what goes off the sums of a group: the sums of codes, with their factors
var<private> sums: array<vec4<f32>, VEC4S * ROWS>; // of a group of weights, over stored codes
var<private> totals: array<vec4<f32>, VEC4S * ROWS>;
var<private> whole: array<vec4<i32>, VEC4S * ROWS>; // sums over 8-bit codes of a block

// Holds byte b of the words of codes of two rows, the second one's times 2^16.
fn hold_byte(number: u32, b: u32, first: vec4<u32>, second: vec4<u32>) {
    bytes[4u * number + b] = signed_byte(first, b) + (signed_byte(second, b) << vec4<u32>(16u));
}

fn hold(number: u32, i: u32) {
    let first = codes[row_codes[2u * number] + i];
    let second = codes[row_codes[2u * number + 1u] + i];
    hold_byte(number, 0u, first, second);
    hold_byte(number, 1u, first, second);
    hold_byte(number, 2u, first, second);
    hold_byte(number, 3u, first, second);
}

// Takes the sums of two rows apart, of which a block of 32 columns stays below 2^15.
fn settle(number: u32, q: u32) {
    let both = found[number * VEC4S + q];
    let first = 2u * number * VEC4S + q;
    let second = first + VEC4S;
    sums[first] = fma(vec4<f32>(bitcast<vec4<i32>>(both << vec4<u32>(16u))),
        vec4<f32>(factors[2u * number] / 65536.0), sums[first]);
    sums[second] = fma(vec4<f32>(bitcast<vec4<i32>>(both + vec4<u32>(0x8000u)) >> vec4<u32>(16u)),
        vec4<f32>(factors[2u * number + 1u]), sums[second]);
    found[number * VEC4S + q] = vec4<u32>();
}

fn settle_all() {
    settle(0u, 0u);
    settle(0u, 1u);
    settle(1u, 0u);
    settle(1u, 1u);
    settle(2u, 0u);
    settle(2u, 1u);
    settle(3u, 0u);
    settle(3u, 1u);
}

// Holds the words of 8-bit codes' activations of row r, for products with two columns at once.
fn hold_pairs(r: u32, i: u32) {
    let mine = codes[row_codes[r] + i];
    bytes[2u * r] = even_codes(mine);
    bytes[2u * r + 1u] = odd_codes(mine);
}

fn add_products(r: u32, i: u32, first: vec4<u32>, second: vec4<u32>, lane: u32) {
    let even = subgroupShuffle(bytes[2u * r][i % 4u], lane + i / 4u);
    let odd = subgroupShuffle(bytes[2u * r + 1u][i % 4u], lane + i / 4u);
    whole[r * VEC4S] += dot_pairs(first, even, odd);
    whole[r * VEC4S + 1u] += dot_pairs(second, even, odd);
}

// Adds the products of word i of all rows' activations, which `lane` and the next one hold, with a word of both vec4s.
fn add_words(i: u32, first: vec4<u32>, second: vec4<u32>, lane: u32) {
    add_products(0u, i, first, second, lane);
    add_products(1u, i, first, second, lane);
    add_products(2u, i, first, second, lane);
    add_products(3u, i, first, second, lane);
    add_products(4u, i, first, second, lane);
    add_products(5u, i, first, second, lane);
    add_products(6u, i, first, second, lane);
    add_products(7u, i, first, second, lane);
}

// Adds word i of a block of 8-bit codes; words behind the last one meet codes that are 0.
fn add_word(i: u32, b: u32, words: u32, lane: u32) {
    let place = at + min(8u * b + i, words - 1u) * TILE_LANES;
    add_words(i, weights[place], weights[place + 1u], lane);
}

// Adds what vec4 q of the lane found over 8-bit codes, which an integer may multiply.
fn settle_bytes(q: u32, integers: vec4<f32>) {
    for (var r = 0u; r < ROWS; r++) {
        sums[r * VEC4S + q] += vec4<f32>(whole[r * VEC4S + q]) * (integers * factors[r]);
        whole[r * VEC4S + q] = vec4<i32>();
    }
}

// Adds group i of 16 columns of 6-bit codes, whose codes lie in `lane`.
fn add_sixteen(i: u32, lane: u32) {
    let first = sixteen_at(at, i);
    let second = sixteen_at(at + 1u, i);
    add_words(0u, first.a, second.a, lane);
    add_words(1u, first.b, second.b, lane);
    add_words(2u, first.c, second.c, lane);
    add_words(3u, first.d, second.d, lane);
    settle_bytes(0u, vec4<f32>(integers_at(at, i)));
    settle_bytes(1u, vec4<f32>(integers_at(at + 1u, i)));
}

// Adds block `b` of 32 columns, whose codes lie in `lane` and the next one.
fn add_block(bits: u32, b: u32, words: u32, lane: u32) {
    if bits == 1u {
        take_words(at + b * TILE_LANES);
        add_ones(lane);
        settle_all();
    } else if bits == 2u {
        take_words(at + 2u * b * TILE_LANES);
        add_twos(lane);
        // The last block may be one word; its other activations are 0.
        take_words(at + min(2u * b + 1u, words - 1u) * TILE_LANES);
        add_twos(lane + 1u);
        settle_all();
    } else if bits == 6u {
        add_sixteen(2u * b, lane);
        add_sixteen(2u * b + 1u, lane + 1u);
    } else {
        add_word(0u, b, words, lane);
        add_word(1u, b, words, lane);
        add_word(2u, b, words, lane);
        add_word(3u, b, words, lane);
        add_word(4u, b, words, lane);
        add_word(5u, b, words, lane);
        add_word(6u, b, words, lane);
        add_word(7u, b, words, lane);
        settle_bytes(0u, vec4<f32>(1.0));
        settle_bytes(1u, vec4<f32>(1.0));
    }
}

// Takes the factors of group `a` of codes, and their sums.
fn take_factors(a: u32) {
    for (var r = 0u; r < ROWS; r++) {
        let m = act_scale_and_sum[row_scales[r] + a];
        factors[r] = m.x;
        less[r] = fma(m.x, m.y, less[r]);
    }
}

// Adds a group of weights to the totals.
fn add_scaled(q: u32, bits: u32, scale: vec4<f32>) {
    let times = select(1.0, 2.0, bits == 1u);
    for (var r = 0u; r < ROWS; r++) {
        let sum = times * sums[r * VEC4S + q] - vec4<f32>(select(less[r], 0.0, bits >= 6u));
        totals[r * VEC4S + q] = fma(sum, scale, totals[r * VEC4S + q]);
        sums[r * VEC4S + q] = vec4<f32>();
    }
}

// Holds what a lane holds of the codes of all rows.
fn hold_all(bits: u32, i: u32) {
    if bits >= 6u {
        for (var r = 0u; r < ROWS; r++) { hold_pairs(r, i); }
    } else {
        hold(0u, i);
        hold(1u, i);
        hold(2u, i);
        hold(3u, i);
    }
}

// Scales what the lane found in group `g` of weights.
fn end_group(bits: u32, g: u32, scale0: u32, tile: u32, lane: u32) {
    let eight = eight_scales(scale0, tile, g, lane);
    add_scaled(0u, bits, four_scales(eight.xy));
    add_scaled(1u, bits, four_scales(eight.zw));
    less = array<f32, ROWS>();
}

// Adds all columns. `bits` is a constant where this is called: drivers that compute on the CPU run all branches that are left,
// but no loop of a branch that is not taken.
fn add_columns_of(bits: u32, scale0: u32, tile: u32, lane: u32) {
    let words = code_words(bits);
    let blocks = params.vectors / 2u;
    let group_blocks = group_columns() / 32u;
    for (var first = 0u; first < blocks; first += 4u) {
        // Eight lanes hold the codes of 128 columns. Lanes behind the last codes hold those again, and are not asked.
        hold_all(bits, min(2u * first + lane_number, params.vectors - 1u));
        let end = min(first + 4u, blocks);
        for (var g = first / group_blocks; g * group_blocks < end; g++) {
            let group_end = min((g + 1u) * group_blocks, blocks);
            let from_block = max(g * group_blocks, first);
#ifdef BY_BLOCK
#else
            for (var begins = from_block == g * group_blocks; begins; begins = false) { take_factors(g); }
#endif
            for (var b = from_block; b < min(group_end, end); b++) {
#ifdef BY_BLOCK
                take_factors(b);
#endif
                add_block(bits, b, words, lane0 + 2u * (b - first));
            }
            // Once, where the group ends here.
            for (var ends = group_end <= end; ends; ends = false) { end_group(bits, g, scale0, tile, lane); }
        }
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    begin_tables(in_subgroup);
    let rows = counted(params.counted_by, params.rows);
    let row0 = group.x * ROWS;
    // Rows behind the last one are it again, and are not written.
    for (var r = 0u; r < ROWS; r++) {
        let row = min(row0 + r, rows - 1u);
        row_codes[r] = row * params.vectors;
        row_scales[r] = row * params.act_groups;
    }
    let tile = find_tile(0u, group.y);
    let part = part_at(tile.part);
    let scale0 = first_scale(tile.part);
    at = part.first + tile.tile * code_words(part.bits) * TILE_LANES + id * VEC4S;
    if part.bits == 1u {
        add_columns_of(1u, scale0, tile.tile, id);
    } else if part.bits == 2u {
        add_columns_of(2u, scale0, tile.tile, id);
    } else if part.bits == 6u {
        add_columns_of(6u, scale0, tile.tile, id);
    } else {
        add_columns_of(8u, scale0, tile.tile, id);
    }
    for (var q = 0u; q < VEC4S; q++) {
        let in_part = ((tile.tile * LANES + id) * VEC4S + q) * 4u;
        for (var r = 0u; r < ROWS; r++) {
            if row0 + r < rows {
                store4(place_of(row0 + r, tile.out + in_part), factor_of(tile.part) * totals[r * VEC4S + q], in_part, part.rows);
            }
        }
    }
}
