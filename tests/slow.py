"""The tests that take longest: `make zoo` runs them, every change goes without."""

from __future__ import annotations

SLOW = (
    "tests/lowering/test_undo.py::test_a_folder_turns_back_bit_for_bit[all]",
    "tests/passes/test_adaptformer.py::test_properties_over_random_vits",
    "tests/passes/test_composition.py::test_on_other_models[deit_base_distilled_patch16_224-",
    "tests/passes/test_fact.py::test_properties_over_random_vits",
    "tests/passes/test_ia3.py::test_properties_over_random_vits",
    "tests/passes/test_merge_tome.py::test_it_is_what_the_equations_say[norm before pooling]",
    "tests/passes/test_prompts.py::test_deep_prompts_lower_to_constant_keys_and_values[e2vpt-vit-b",
    "tests/passes/test_repadapter.py::test_properties_over_random_vits",
    "tests/passes/test_repeated.py::test_what_is_claimed_holds",
    "tests/passes/test_ssf.py::test_properties_over_random_vits",
    "tests/properties/test_random_models.py::test_random_specs_verify_or_are_refused[strategy1]",
    "tests/sensitivity/test_hierarchical.py::test_from_profile_to_emitted_source[convnext-",
    "tests/test_compile.py::test_inductor_on_the_cpu[False]",
    "tests/test_compile.py::test_models_that_fail[Fixed-",
    "tests/test_compile.py::test_rewritten_models_pass[export-swin]",
    "tests/test_compile.py::test_rewritten_models_pass[recompilation-",
    "tests/test_compile.py::test_rewritten_models_pass[training-swin]",
    "tests/test_compile.py::test_what_the_checks_measure",
    "tests/test_contexts.py::test_many_threads_apply",
    "tests/test_examples.py::test_the_committed_source_is_what_is_written_and_runs_on_real_images[l",
    "tests/test_plan.py::test_a_plan_of_a_billion_parameters_allocates_no_weight",
    "tests/tuning/test_distributed.py::",
    "tests/tuning/test_resume.py::test_a_killed_run_ends_bit_identical[step-19-16]",
)
"""Node ids, or how they begin."""
