"""The processor's model and the features that the kernels ask for."""

from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "processor"
GROUP: Final[Group] = "processor"
MEASURES: Final = False
# what kernels/cpu/isa.cpp asks of the processor, as Linux names it
NEEDS: Final = {
    "avx2": ("avx2", "fma", "f16c", "bmi1", "bmi2", "popcnt"),
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vbmi2", "avx512_vnni"),
    "amx": ("amx_tile", "amx_int8", "amx_bf16"),
}


def probe(system: System) -> Finding:
    info, flags = system.processor(), system.flags()
    model = info.get("model name") or info.get("Model") or HIDDEN
    lacking = {isa: [flag for flag in needs if flag not in flags] for isa, needs in NEEDS.items()}
    facts = {"model": model, **{f"lacks_{isa}": " ".join(missing) for isa, missing in lacking.items()}}
    if not flags:
        return Finding("unknown", f"{model}; features {HIDDEN}", "", facts)
    has = [isa for isa, missing in lacking.items() if not missing]
    sentence = f"{model}; has what the {', '.join(has) or 'portable'} kernels need"
    if not has:
        advice = f"Without {', '.join(lacking['avx2'])} only portable kernels run: use a processor with AVX2 (2013 on)."
        return Finding("hint", sentence, advice, facts)
    partly = [flag for flag in lacking["avx512"] if "avx512f" in flags]
    if partly:
        advice = f"It has AVX-512 without {', '.join(partly)}, which the kernels need: the AVX2 kernels run."
        return Finding("good", sentence, advice, facts)
    return Finding("good", sentence, "", facts)
