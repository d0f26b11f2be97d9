// Absmax codes of a row under a norm, made by a workgroup of THREADS (ops/bit_linear.rs). The includer keeps them:
// keep_codes(term, unit, words) and keep_meta(term, [1/k, sum of codes]).
#import bit_linear

const FEW: u32 = 8u;

var<workgroup> partial: array<f32, THREADS>;
var<workgroup> few: array<f32, FEW>;

fn sum_all(id: u32, v: f32) -> f32 {
    workgroupBarrier();
    partial[id] = v;
    workgroupBarrier();
    if id < FEW {
        var sum = 0.0;
        for (var i = id; i < THREADS; i += FEW) { sum += partial[i]; }
        few[id] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < FEW; i++) { sum += few[i]; }
    return sum;
}

fn max_all(id: u32, v: f32) -> f32 {
    workgroupBarrier();
    partial[id] = v;
    workgroupBarrier();
    if id < FEW {
        var top = partial[id];
        for (var i = id; i < THREADS; i += FEW) { top = max(top, partial[i]); }
        few[id] = top;
    }
    workgroupBarrier();
    var top = few[0];
    for (var i = 1u; i < FEW; i++) { top = max(top, few[i]); }
    return top;
}

// What the norm of a term reads: x, or x under the norm in front.
fn input(at: u32, i: u32, pre_rms: f32) -> vec4<f32> {
    var v = x[at + i];
#ifdef PRE
    v = pre[i] * bounded(bounded(v, params.pre_in_bound) / pre_rms, params.pre_out_bound);
#endif
    return bounded(v, params.in_bound);
}

// Root mean square of x in front of the first norm.
fn pre_rms_of(id: u32, at: u32) -> f32 {
#ifdef PRE
    var squares = 0.0;
    for (var i = id; i < params.width / 4u; i += THREADS) {
        let v = bounded(x[at + i], params.pre_in_bound);
        squares += dot(v, v);
    }
    return sqrt(max(sum_all(id, squares) / f32(params.width), params.pre_floor) + params.pre_eps);
#else
    return 1.0;
#endif
}

fn rms_of(id: u32, at: u32, pre_rms: f32) -> f32 {
    var squares = 0.0;
    for (var i = id; i < params.width / 4u; i += THREADS) {
        let v = input(at, i, pre_rms);
        squares += dot(v, v);
    }
    return sqrt(max(sum_all(id, squares) / f32(params.width), params.rms_floor) + params.eps);
}

// Makes the codes of a term, as ops/norm_quantise.rs defines them.
fn make_codes(id: u32, term: u32, at: u32, norm: u32, pre_rms: f32, rms: f32) {
    let quarter = params.width / 4u;
    var most = params.act_floor;
    for (var i = id; i < quarter; i += THREADS) {
        let v = norms[norm + i] * bounded(input(at, i, pre_rms) / rms, params.out_bound);
        let size = abs(bounded(v, params.act_bound));
        most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
    }
    let k = params.max_code / max_all(id, most);
    var sum = 0.0;
    for (var unit = id; unit < UNITS; unit += THREADS) {
        var words = vec4<u32>();
        for (var c = 0u; c < 4u; c++) {
            let i = 4u * unit + c;
            if i < quarter {
                let v = norms[norm + i] * bounded(input(at, i, pre_rms) / rms, params.out_bound);
                let code = clamp(round(bounded(v, params.act_bound) * k), vec4<f32>(-params.max_code - 1.0),
                    vec4<f32>(params.max_code));
                sum += dot(code, vec4<f32>(1.0));
                let byte = (bitcast<vec4<u32>>(vec4<i32>(code)) & vec4<u32>(0xffu)) << vec4<u32>(0u, 8u, 16u, 24u);
                words[c] = byte.x | byte.y | byte.z | byte.w;
            }
        }
        keep_codes(term, unit, words);
    }
    let total = sum_all(id, sum);
    if id == 0u { keep_meta(term, vec2<f32>(1.0 / k, total)); }
}
