"""GRPO and Dr.GRPO with DRA and without, over seeds: does the policy keep its ways of reasoning?"""
