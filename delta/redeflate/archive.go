package redeflate
