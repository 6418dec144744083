"""Rates that a machine of two cores might have."""

from __future__ import annotations

from leanseek.cost.rates import DecodeRates, EngineRates, Rates

ENGINE = EngineRates(
    layer_read_s=0.0004,
    text_s=2e-5,
    read_flops_per_s=75e9,
    attend_read_flops_per_s=50e9,
    layer_decode_s=0.00008,
    decode=(
        DecodeRates(1, 95e9, 10e9),
        DecodeRates(8, 90e9, 15e9),
        DecodeRates(64, 75e9, 20e9),
        DecodeRates(256, 60e9, 20e9),
    ),
    sample_s=4e-5,
    leave_s=3e-4,
    keep_s=1e-6,
    tell_step_s=3e-5,
    tell_s=2e-6,
)
RATES = Rates(
    layer_step_s=0.02,
    train_flops_per_s=160e9,
    mtp_step_s=0.015,
    mtp_flops_per_s=120e9,
    forward_flops_per_s=60e9,
    engine=ENGINE,
    alone=ENGINE,
    workers=2,
    read_gain=1.4,
    decode_gain=1.5,
    renew_parameters_per_s=3e7,
    problem_s=5e-5,
    reply_s=1e-4,
    reply_token_s=5e-6,
    learn_documents_per_s=22e3,
    encode_documents_per_s=19e3,
    search_documents_per_s=39e3,
    document_tokens=39.0,
    watts=7.0,
    pulse_s=0.0002,
    slower_pulse_s=0.00025,
)
