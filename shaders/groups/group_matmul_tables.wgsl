// Codes × low-bit matrices with scales by group, for few rows, by looking sums up (ops/group_matmul.rs). Grid: x = tiles of 128
// outputs, y = rows. A workgroup is LANES lanes, each with VEC4S times 4 outputs.
#import group_matmul
#import lookup_tables

const VEC4S: u32 = 4u;
const NUMBERS: u32 = 1u;

var<private> at: u32; // the lane's first vec4 of weights
var<private> sums: array<vec4<f32>, VEC4S>; // of a group of weights
var<private> totals: array<vec4<f32>, VEC4S>;

fn add_bytes(q: u32, b: u32, words: u32, act: u32) {
    let first = bytes4(at + q, 8u * b, words, codes[act]);
    found[q] += bitcast<vec4<u32>>(first + bytes4(at + q, 8u * b + 4u, words, codes[act + 1u]));
}

// Adds block `b` of 32 columns, whose codes lie from `act` on, and in `lane` and the next one.
fn add_block(bits: u32, b: u32, words: u32, act: u32, lane: u32) {
    if bits == 1u {
        take_words(at + b * TILE_LANES);
        add_ones(lane);
    } else if bits == 2u {
        take_words(at + 2u * b * TILE_LANES);
        add_twos(lane);
        // The last block may be one word; its other activations are 0.
        take_words(at + min(2u * b + 1u, words - 1u) * TILE_LANES);
        add_twos(lane + 1u);
    } else {
        add_bytes(0u, b, words, act);
        add_bytes(1u, b, words, act);
        add_bytes(2u, b, words, act);
        add_bytes(3u, b, words, act);
    }
}

fn make_float(q: u32, m: vec2<f32>, bits: u32) {
    sums[q] += exact(bitcast<vec4<i32>>(found[q]), m.y, bits) * m.x;
    found[q] = vec4<u32>();
}

// Exact sums become floats with the factor of group `a` of codes, whose sum goes off.
fn add_exact(bits: u32, row: u32, a: u32) {
    let m = act_scale_and_sum[row * params.act_groups + a];
    make_float(0u, m, bits);
    make_float(1u, m, bits);
    make_float(2u, m, bits);
    make_float(3u, m, bits);
}

fn add_scaled(q: u32, g: u32, scale0: u32, tile: u32, lane: u32) {
    totals[q] += sums[q] * scales_at(scale0, tile, g, lane * VEC4S + q);
    sums[q] = vec4<f32>();
}

// Adds all groups of weights. `bits` is a constant where this is called: drivers that compute on the CPU run all branches
// that are left, but no loop of a branch that is not taken.
fn add_groups(bits: u32, row: u32, scale0: u32, tile: u32, lane: u32) {
    let words = row_words(bits);
    let act = row * params.vectors;
    let blocks = params.vectors / 2u;
    let group_blocks = group_columns() / 32u;
    for (var g = 0u; g < params.groups; g++) {
        let end = min((g + 1u) * group_blocks, blocks);
        for (var first = g * group_blocks; first < end; first += 4u) {
            // Eight lanes hold the codes of 128 columns. Lanes behind the last codes hold those again, and are not asked.
            let mine = codes[act + min(2u * first + lane_number, params.vectors - 1u)];
            bytes[0] = signed_byte(mine, 0u);
            bytes[1] = signed_byte(mine, 1u);
            bytes[2] = signed_byte(mine, 2u);
            bytes[3] = signed_byte(mine, 3u);
            for (var b = first; b < min(first + 4u, end); b++) {
                add_block(bits, b, words, act + 2u * b, lane0 + 2u * (b - first));
#ifdef BY_BLOCK
                add_exact(bits, row, b);
#endif
            }
        }
#ifdef BY_BLOCK
#else
        add_exact(bits, row, g);
#endif
        add_scaled(0u, g, scale0, tile, lane);
        add_scaled(1u, g, scale0, tile, lane);
        add_scaled(2u, g, scale0, tile, lane);
        add_scaled(3u, g, scale0, tile, lane);
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
    at = part.first + tile.tile * row_words(part.bits) * TILE_LANES + id * VEC4S;
    if part.bits == 1u {
        add_groups(1u, row, scale0, tile.tile, id);
    } else if part.bits == 2u {
        add_groups(2u, row, scale0, tile.tile, id);
    } else {
        add_groups(8u, row, scale0, tile.tile, id);
    }
    finish(0u, row, tile, part.rows, id);
    finish(1u, row, tile, part.rows, id);
    finish(2u, row, tile, part.rows, id);
    finish(3u, row, tile, part.rows, id);
}
