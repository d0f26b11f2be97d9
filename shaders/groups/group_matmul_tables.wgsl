// Codes × low-bit matrices with scales by group, for few rows (ops/group_matmul.rs): sums of 1-bit codes are looked up, others
// multiplied two at once. Grid: x = tiles of 128 outputs, y = rows. A workgroup is LANES lanes, each with VEC4S times 4 outputs.
#import group_matmul
#import lookup_tables
#import column_blocks

const VEC4S: u32 = 4u;
const NUMBERS: u32 = 1u;

var<private> at: u32; // the lane's first vec4 of weights
var<private> sums: array<vec4<f32>, VEC4S>; // of a group of weights
var<private> totals: array<vec4<f32>, VEC4S>;

// Adds word i of a block of 8-bit codes; words behind the last one meet codes that are 0.
fn add_word(i: u32, b: u32, words: u32, lane: u32) {
    let place = at + min(8u * b + i, words - 1u) * TILE_LANES;
    let even = subgroupShuffle(bytes[0][i % 4u], lane + i / 4u);
    let odd = subgroupShuffle(bytes[1][i % 4u], lane + i / 4u);
    found[0] += bitcast<vec4<u32>>(dot_pairs(weights[place], even, odd));
    found[1] += bitcast<vec4<u32>>(dot_pairs(weights[place + 1u], even, odd));
    found[2] += bitcast<vec4<u32>>(dot_pairs(weights[place + 2u], even, odd));
    found[3] += bitcast<vec4<u32>>(dot_pairs(weights[place + 3u], even, odd));
}

// The pairs of 16 columns, which `lane` holds.
fn pairs_of(lane: u32) -> Acts {
    let even = bytes[0];
    let odd = bytes[1];
    return Acts(
        vec4<u32>(subgroupShuffle(even.x, lane), subgroupShuffle(even.y, lane), subgroupShuffle(even.z, lane),
            subgroupShuffle(even.w, lane)),
        vec4<u32>(subgroupShuffle(odd.x, lane), subgroupShuffle(odd.y, lane), subgroupShuffle(odd.z, lane),
            subgroupShuffle(odd.w, lane)));
}

// Adds two words of 2-bit codes. For one row these are fewer instructions than looking sums up takes; several rows share
// what is looked up, and are faster so.
fn add_two_words(first: u32, second: u32, lane: u32) {
    let a = pairs_of(lane);
    let b = pairs_of(lane + 1u);
    found[0] += bitcast<vec4<u32>>(block2(weights[first], weights[second], a, b));
    found[1] += bitcast<vec4<u32>>(block2(weights[first + 1u], weights[second + 1u], a, b));
    found[2] += bitcast<vec4<u32>>(block2(weights[first + 2u], weights[second + 2u], a, b));
    found[3] += bitcast<vec4<u32>>(block2(weights[first + 3u], weights[second + 3u], a, b));
}

// Adds vec4 q of a group of 16 columns of 6-bit codes, with what the group's lane holds.
fn add_six_of(q: u32, i: u32, acts: Acts) {
    let w = sixteen_at(at + q, i);
    let sum = dot_pairs(w.a, acts.even.x, acts.odd.x) + dot_pairs(w.b, acts.even.y, acts.odd.y)
        + dot_pairs(w.c, acts.even.z, acts.odd.z) + dot_pairs(w.d, acts.even.w, acts.odd.w);
    found[q] += bitcast<vec4<u32>>(sum * integers_at(at + q, i));
}

// Adds group i of 16 columns of 6-bit codes, whose codes lie in `lane`.
fn add_sixteen(i: u32, lane: u32) {
    let acts = pairs_of(lane);
    add_six_of(0u, i, acts);
    add_six_of(1u, i, acts);
    add_six_of(2u, i, acts);
    add_six_of(3u, i, acts);
}

// Adds block `b` of 32 columns, whose codes lie in `lane` and the next one.
fn add_block(bits: u32, b: u32, words: u32, lane: u32) {
    if bits == 1u {
        take_words(at + b * TILE_LANES);
        add_ones(lane);
    } else if bits == 2u {
        // The last block may be one word; its other activations are 0.
        add_two_words(at + 2u * b * TILE_LANES, at + min(2u * b + 1u, words - 1u) * TILE_LANES, lane);
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
    }
}

fn make_float(q: u32, m: vec2<f32>, bits: u32) {
    sums[q] += exact(bitcast<vec4<i32>>(found[q]), m.y, bits) * m.x;
    found[q] = vec4<u32>();
}

// Exact sums become floats with the factor of a group of codes, whose sum goes off.
fn add_exact(bits: u32, m: vec2<f32>) {
    make_float(0u, m, bits);
    make_float(1u, m, bits);
    make_float(2u, m, bits);
    make_float(3u, m, bits);
}

fn add_scaled(q: u32, scale: vec4<f32>) {
    totals[q] += sums[q] * scale;
    sums[q] = vec4<f32>();
}

// Scales what the lane found in group `g` of weights.
fn end_group(bits: u32, row: u32, g: u32, scale0: u32, tile: u32, lane: u32) {
#ifdef BY_BLOCK
#else
    add_exact(bits, act_scale_and_sum[row * params.act_groups + g]);
#endif
    let first8 = eight_scales(scale0, tile, g, 2u * lane);
    let second8 = eight_scales(scale0, tile, g, 2u * lane + 1u);
    add_scaled(0u, four_scales(first8.xy));
    add_scaled(1u, four_scales(first8.zw));
    add_scaled(2u, four_scales(second8.xy));
    add_scaled(3u, four_scales(second8.zw));
}

// Takes apart the codes that this lane holds for its eight.
fn hold(bits: u32, mine: vec4<u32>) {
    if bits == 1u {
        bytes[0] = signed_byte(mine, 0u);
        bytes[1] = signed_byte(mine, 1u);
        bytes[2] = signed_byte(mine, 2u);
        bytes[3] = signed_byte(mine, 3u);
    } else {
        bytes[0] = even_codes(mine);
        bytes[1] = odd_codes(mine);
    }
}

// Adds all columns. `bits` is a constant where this is called: drivers that compute on the CPU run all branches that are left,
// but no loop of a branch that is not taken.
fn add_columns_of(bits: u32, row: u32, scale0: u32, tile: u32, lane: u32) {
    let words = code_words(bits);
    let blocks = params.vectors / 2u;
    let group_blocks = group_columns() / 32u;
    for (var first = 0u; first < blocks; first += 4u) {
        // Eight lanes hold the codes of 128 columns. Lanes behind the last codes hold those again, and are not asked.
        hold(bits, codes[row * params.vectors + min(2u * first + lane_number, params.vectors - 1u)]);
#ifdef BY_BLOCK
        let of_mine = act_scale_and_sum[row * params.act_groups + min(first + lane_number, params.act_groups - 1u)];
#endif
        let end = min(first + 4u, blocks);
        for (var g = first / group_blocks; g * group_blocks < end; g++) {
            let group_end = min((g + 1u) * group_blocks, blocks);
            for (var b = max(g * group_blocks, first); b < min(group_end, end); b++) {
                add_block(bits, b, words, lane0 + 2u * (b - first));
#ifdef BY_BLOCK
                let of_block = lane0 + b - first;
                add_exact(bits, vec2<f32>(subgroupShuffle(of_mine.x, of_block), subgroupShuffle(of_mine.y, of_block)));
#endif
            }
            // Once, where the group ends here.
            for (var ends = group_end <= end; ends; ends = false) { end_group(bits, row, g, scale0, tile, lane); }
        }
    }
}

fn finish(q: u32, row: u32, tile: Tile, rows: u32, lane: u32) {
    let in_part = (tile.tile * TILE_LANES + lane * VEC4S + q) * 4u;
    store4(place_of(row, tile.out + in_part), factor_of(tile.part) * totals[q], in_part, rows);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    begin_tables(in_subgroup);
    let row = group.y;
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    let scale0 = first_scale(tile.part);
    at = part.first + tile.tile * code_words(part.bits) * TILE_LANES + id * VEC4S;
    if part.bits == 1u {
        add_columns_of(1u, row, scale0, tile.tile, id);
    } else if part.bits == 2u {
        add_columns_of(2u, row, scale0, tile.tile, id);
    } else if part.bits == 6u {
        add_columns_of(6u, row, scale0, tile.tile, id);
    } else {
        add_columns_of(8u, row, scale0, tile.tile, id);
    }
    finish(0u, row, tile, part.rows, id);
    finish(1u, row, tile, part.rows, id);
    finish(2u, row, tile, part.rows, id);
    finish(3u, row, tile, part.rows, id);
}
