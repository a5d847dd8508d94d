# base
FROM localhost:26162/none/such:1
