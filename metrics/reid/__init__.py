"""Re-identification: attackers, identification, verification.  ``deidbench.kinds.attackers`` finds the attackers."""
