// Parameters of the products with scales by group (ops/group_matmul.rs), and their bindings.
#import step
#import group_stack

struct Params {
    counted_by: u32,
    rows: u32,
    vectors: u32, // vec4s of a row of codes or of x
    groups: u32, // of weights, in a row
    act_group: u32, // columns of a group of codes: 32, or those of a group of weights
    act_groups: u32, // of codes, in a row
    first_out: u32,
    out_width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#ifdef FLOATS
#bind var<storage, read> x: array<vec4<f32>>; // [rows, width / 4]
#else
#bind var<storage, read> codes: array<vec4<u32>>; // [rows, width / 16 padded to 2]
#bind var<storage, read> act_scale_and_sum: array<vec2<f32>>; // [rows, act_groups]: factor, sum of codes
#endif
#bind var<storage, read> weights: array<vec4<u32>>; // a stack: header, table, words and scales
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows, out_width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, out_width]

// The place of column `out` of a row of y.
fn place_of(row: u32, out: u32) -> u32 {
    return row * params.out_width + params.first_out + out;
}
