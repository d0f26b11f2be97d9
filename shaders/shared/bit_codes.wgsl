// Absmax codes of a row under a norm, made by a workgroup of THREADS (ops/bit_linear.rs). The includer adds up and keeps
// them: sum_all(id, v), max_all(id, v), keep_codes(term, unit, words) and keep_meta(term, [1/k, sum of codes]).
#import bit_linear

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

// Four elements under a norm, as ops/norm_quantise.rs defines them.
fn normed(at: u32, norm: u32, i: u32, pre_rms: f32, rms: f32) -> vec4<f32> {
    let v = norms[norm + i] * bounded(input(at, i, pre_rms) / rms, params.out_bound);
    return bounded(v, params.act_bound);
}

// Their codes; 0 behind the last ones.
fn codes_of(at: u32, norm: u32, i: u32, pre_rms: f32, rms: f32, k: f32) -> vec4<f32> {
    let quarter = params.width / 4u;
    let v = round(normed(at, norm, min(i, quarter - 1u), pre_rms, rms) * k);
    return select(vec4<f32>(), clamp(v, vec4<f32>(-params.max_code - 1.0), vec4<f32>(params.max_code)), i < quarter);
}

fn word_of(code: vec4<f32>) -> u32 {
    let byte = (bitcast<vec4<u32>>(vec4<i32>(code)) & vec4<u32>(0xffu)) << vec4<u32>(0u, 8u, 16u, 24u);
    return byte.x | byte.y | byte.z | byte.w;
}

// Makes the codes of a term.
fn make_codes(id: u32, term: u32, at: u32, norm: u32, pre_rms: f32, rms: f32) {
    var most = params.act_floor;
    for (var i = id; i < params.width / 4u; i += THREADS) {
        let size = abs(normed(at, norm, i, pre_rms, rms));
        most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
    }
    let k = params.max_code / max_all(id, most);
    var sum = 0.0;
    for (var unit = id; unit < UNITS; unit += THREADS) {
        let a = codes_of(at, norm, 4u * unit, pre_rms, rms, k);
        let b = codes_of(at, norm, 4u * unit + 1u, pre_rms, rms, k);
        let c = codes_of(at, norm, 4u * unit + 2u, pre_rms, rms, k);
        let d = codes_of(at, norm, 4u * unit + 3u, pre_rms, rms, k);
        sum += dot(a + b + c + d, vec4<f32>(1.0));
        keep_codes(term, unit, vec4<u32>(word_of(a), word_of(b), word_of(c), word_of(d)));
    }
    let total = sum_all(id, sum);
    if id == 0u { keep_meta(term, vec2<f32>(1.0 / k, total)); }
}
