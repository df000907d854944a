# %% [markdown]
# # A percent script

# %%
total = sum(range(10))

# %% tags=["raises-exception"]
total / 0

# %%
print(f"total {total}")
