"""The API `finetuning.dev/v1alpha1`: types, conditions, rules. The CRDs are generated from here."""
