// Codes of x with one scale for the whole tensor (ops/quantise.rs). Grid: one workgroup per row.
#import reduce

struct Params {
    width: u32,
    max_code: f32,
    floor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, width]
#bind var<storage, read> absmax: array<f32>; // [1]
#bind var<storage, read_write> codes: array<u32>; // [rows, width / 4 padded to 8]
#bind var<storage, read_write> act_scale_and_sum: array<vec2<f32>>; // [rows]: scale, sum of codes

fn run(lane: Lane, group: vec3<u32>) {
    let scale = at_least(absmax[0], params.floor) / params.max_code;
    let words = (params.width + 31u) / 32u * 8u;
    var sum = 0.0;
    for (var word = lane.id; word < words; word += WG) {
        var packed = 0u;
        for (var b = 0u; b < 4u; b++) {
            let i = 4u * word + b;
            if i < params.width {
                let code = code_of(x[group.x * params.width + i] / scale, params.max_code);
                sum += code;
                packed |= (bitcast<u32>(i32(code)) & 0xffu) << (8u * b);
            }
        }
        codes[group.x * words + word] = packed;
    }
    let total = workgroup_sum(lane, sum);
    if lane.id == 0u { act_scale_and_sum[group.x] = vec2<f32>(scale, total); }
}
